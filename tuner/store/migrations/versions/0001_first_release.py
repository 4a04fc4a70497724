"""Tables of the first release."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create every table."""
    op.create_table(
        "tuner_study",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("answer", sa.Text(), nullable=False),
        sa.Column("stop_requested", sa.Boolean(), nullable=False),
        sa.Column("provenance", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_tuner_study")),
    )
    op.create_table(
        "tuner_lease",
        sa.Column("study", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("pid", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["study"],
            ["tuner_study.name"],
            name=op.f("fk_tuner_lease_tuner_study"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("study", name=op.f("pk_tuner_lease")),
    )
    op.create_table(
        "tuner_trial",
        sa.Column("study", sa.Text(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("arm", sa.Text(), nullable=False),
        sa.Column("stage", sa.Text(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("point", sa.JSON(), nullable=False),
        sa.Column("params", sa.JSON(), nullable=False),
        sa.Column("configuration", sa.JSON(), nullable=False),
        sa.Column("stop_rules", sa.JSON(), nullable=False),
        sa.Column("length", sa.Double(), nullable=False),
        sa.Column("value", sa.Double(), nullable=True),
        sa.Column("metrics", sa.JSON(), nullable=False),
        sa.Column("steps", sa.BigInteger(), nullable=False),
        sa.Column("examples", sa.BigInteger(), nullable=False),
        sa.Column("wall_seconds", sa.Double(), nullable=False),
        sa.Column("attempts", sa.BigInteger(), nullable=False),
        sa.Column("micro_batch", sa.BigInteger(), nullable=True),
        sa.Column("device", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("failure", sa.JSON(), nullable=True),
        sa.Column("provenance", sa.JSON(), nullable=False),
        sa.Column("info", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["study"],
            ["tuner_study.name"],
            name=op.f("fk_tuner_trial_tuner_study"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("study", "number", name=op.f("pk_tuner_trial")),
    )
    op.create_table(
        "tuner_evaluation",
        sa.Column("study", sa.Text(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("examples", sa.BigInteger(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("lr", sa.Double(), nullable=False),
        sa.Column("train_loss", sa.Double(), nullable=False),
        sa.Column("grad_norm", sa.Double(), nullable=False),
        sa.Column("metrics", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["study", "number"],
            ["tuner_trial.study", "tuner_trial.number"],
            name=op.f("fk_tuner_evaluation_tuner_trial"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("study", "number", "step", name=op.f("pk_tuner_evaluation")),
    )
    op.create_table(
        "tuner_lr_curve",
        sa.Column("study", sa.Text(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("points", sa.JSON(), nullable=False),
        sa.Column("suggested_lr", sa.Double(), nullable=True),
        sa.Column("low", sa.Double(), nullable=True),
        sa.Column("high", sa.Double(), nullable=True),
        sa.Column("diverges_at", sa.Double(), nullable=True),
        sa.Column("flags", sa.JSON(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["study", "number"],
            ["tuner_trial.study", "tuner_trial.number"],
            name=op.f("fk_tuner_lr_curve_tuner_trial"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("study", "number", name=op.f("pk_tuner_lr_curve")),
    )
    op.create_table(
        "tuner_step_lrs",
        sa.Column("study", sa.Text(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("lrs", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["study", "number"],
            ["tuner_trial.study", "tuner_trial.number"],
            name=op.f("fk_tuner_step_lrs_tuner_trial"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("study", "number", name=op.f("pk_tuner_step_lrs")),
    )
