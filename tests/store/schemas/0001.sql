-- Schema 0001 as it was released, with the rows of one study. Never changed afterwards.
-- dialect: sqlite
CREATE TABLE tuner_study (
    name TEXT NOT NULL,
    state TEXT NOT NULL,
    spec JSON NOT NULL,
    created_at DATETIME NOT NULL,
    updated_at DATETIME NOT NULL,
    answer TEXT NOT NULL,
    stop_requested BOOLEAN NOT NULL,
    provenance JSON NOT NULL,
    CONSTRAINT pk_tuner_study PRIMARY KEY (name)
);
CREATE TABLE tuner_lease (
    study TEXT NOT NULL,
    owner TEXT NOT NULL,
    host TEXT NOT NULL,
    pid BIGINT NOT NULL,
    expires_at DATETIME NOT NULL,
    CONSTRAINT pk_tuner_lease PRIMARY KEY (study),
    CONSTRAINT fk_tuner_lease_tuner_study FOREIGN KEY(study) REFERENCES tuner_study (name) ON DELETE CASCADE
);
CREATE TABLE tuner_trial (
    study TEXT NOT NULL,
    number BIGINT NOT NULL,
    arm TEXT NOT NULL,
    stage TEXT NOT NULL,
    seed BIGINT NOT NULL,
    state TEXT NOT NULL,
    point JSON NOT NULL,
    params JSON NOT NULL,
    configuration JSON NOT NULL,
    stop_rules JSON NOT NULL,
    length DOUBLE NOT NULL,
    value DOUBLE,
    metrics JSON NOT NULL,
    steps BIGINT NOT NULL,
    examples BIGINT NOT NULL,
    wall_seconds DOUBLE NOT NULL,
    attempts BIGINT NOT NULL,
    micro_batch BIGINT,
    device TEXT NOT NULL,
    host TEXT NOT NULL,
    started_at DATETIME,
    finished_at DATETIME,
    failure JSON,
    provenance JSON NOT NULL,
    info JSON NOT NULL,
    CONSTRAINT pk_tuner_trial PRIMARY KEY (study, number),
    CONSTRAINT fk_tuner_trial_tuner_study FOREIGN KEY(study) REFERENCES tuner_study (name) ON DELETE CASCADE
);
CREATE TABLE tuner_evaluation (
    study TEXT NOT NULL,
    number BIGINT NOT NULL,
    step BIGINT NOT NULL,
    examples BIGINT NOT NULL,
    seconds DOUBLE NOT NULL,
    lr DOUBLE NOT NULL,
    train_loss DOUBLE NOT NULL,
    grad_norm DOUBLE NOT NULL,
    metrics JSON NOT NULL,
    CONSTRAINT pk_tuner_evaluation PRIMARY KEY (study, number, step),
    CONSTRAINT fk_tuner_evaluation_tuner_trial FOREIGN KEY(study, number) REFERENCES tuner_trial (study, number) ON DELETE CASCADE
);
CREATE TABLE tuner_lr_curve (
    study TEXT NOT NULL,
    number BIGINT NOT NULL,
    points JSON NOT NULL,
    suggested_lr DOUBLE,
    low DOUBLE,
    high DOUBLE,
    diverges_at DOUBLE,
    flags JSON NOT NULL,
    reason TEXT NOT NULL,
    interval_low DOUBLE,
    interval_high DOUBLE,
    safe_low DOUBLE,
    safe_high DOUBLE,
    grid JSON NOT NULL,
    optima JSON NOT NULL,
    axis TEXT NOT NULL,
    method TEXT NOT NULL,
    run_steps BIGINT,
    cost DOUBLE NOT NULL,
    CONSTRAINT pk_tuner_lr_curve PRIMARY KEY (study, number),
    CONSTRAINT fk_tuner_lr_curve_tuner_trial FOREIGN KEY(study, number) REFERENCES tuner_trial (study, number) ON DELETE CASCADE
);
CREATE TABLE tuner_step_lrs (
    study TEXT NOT NULL,
    number BIGINT NOT NULL,
    lrs BLOB NOT NULL,
    CONSTRAINT pk_tuner_step_lrs PRIMARY KEY (study, number),
    CONSTRAINT fk_tuner_step_lrs_tuner_trial FOREIGN KEY(study, number) REFERENCES tuner_trial (study, number) ON DELETE CASCADE
);
CREATE TABLE tuner_alembic_version (
    version_num VARCHAR(32) NOT NULL,
    CONSTRAINT tuner_alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO tuner_alembic_version VALUES ('0001');
INSERT INTO tuner_study (name, state, spec, created_at, updated_at, answer, stop_requested, provenance)
VALUES ('released', 'completed', '{"study": {"name": "released", "metric": "acc"}}', '2026-01-02 03:04:05.678901', '2026-01-02 03:04:05.678901',
    'sgd', 0, '{}');
INSERT INTO tuner_trial (study, number, arm, stage, seed, state, point, params, configuration, stop_rules, length,
    value, metrics, steps, examples, wall_seconds, attempts, micro_batch, device, host, started_at, finished_at,
    failure, provenance, info)
VALUES ('released', 0, 'sgd-constant', 'explore', 1, 'completed', '{"lr": 0.1}', '{"lr": 0.1}',
    '{"optimizer": "sgd", "optimizer_args": {"lr": 0.1}, "schedule": "constant",
      "schedule_args": {}, "batch_size": 64}', '[]', 1.0, 0.5, '{"loss": {"$float": "nan"}, "acc": 0.5}',
    20, 1280, 1.5, 1, NULL, 'cpu', 'trainer', '2026-01-02 03:04:05.678901', NULL, NULL, '{"commit": "abc"}', '{}');
INSERT INTO tuner_evaluation (study, number, step, examples, seconds, lr, train_loss, grad_norm, metrics)
VALUES ('released', 0, 10, 640, 0.7, 0.1, 'NaN', 1.5, '{"loss": 1.0}'),
    ('released', 0, 20, 1280, 1.4, 0.05, 0.5, 1.5, '{"loss": 0.5}');
INSERT INTO tuner_step_lrs (study, number, lrs) VALUES ('released', 0, X'9A9999999999B93F9A9999999999A93F');
INSERT INTO tuner_lr_curve (study, number, points, suggested_lr, low, high, diverges_at, flags, reason,
    interval_low, interval_high, safe_low, safe_high, grid, optima, axis, method, run_steps, cost)
VALUES ('released', 0, '[[1e-05, 2.0], [0.1, {"$float": "inf"}]]', 0.001, NULL, 0.01, 0.1, '["boundary"]',
    'steepest', 0.0005, 0.002, NULL, 0.003, '[[12, 0.001, 2.0], [12, 0.1, {"$float": "inf"}]]', '[[12, 0.001]]',
    'lr', 'forks', 300, 350.5);
INSERT INTO tuner_lease (study, owner, host, pid, expires_at)
VALUES ('released', 'somebody', 'trainer', 1, '2026-01-02 03:04:05.678901');
-- dialect: postgresql
CREATE TABLE tuner_study (
    name TEXT NOT NULL,
    state TEXT NOT NULL,
    spec JSON NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    updated_at TIMESTAMP WITH TIME ZONE NOT NULL,
    answer TEXT NOT NULL,
    stop_requested BOOLEAN NOT NULL,
    provenance JSON NOT NULL,
    CONSTRAINT pk_tuner_study PRIMARY KEY (name)
);
CREATE TABLE tuner_lease (
    study TEXT NOT NULL,
    owner TEXT NOT NULL,
    host TEXT NOT NULL,
    pid BIGINT NOT NULL,
    expires_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_tuner_lease PRIMARY KEY (study),
    CONSTRAINT fk_tuner_lease_tuner_study FOREIGN KEY(study) REFERENCES tuner_study (name) ON DELETE CASCADE
);
CREATE TABLE tuner_trial (
    study TEXT NOT NULL,
    number BIGINT NOT NULL,
    arm TEXT NOT NULL,
    stage TEXT NOT NULL,
    seed BIGINT NOT NULL,
    state TEXT NOT NULL,
    point JSON NOT NULL,
    params JSON NOT NULL,
    configuration JSON NOT NULL,
    stop_rules JSON NOT NULL,
    length DOUBLE PRECISION NOT NULL,
    value DOUBLE PRECISION,
    metrics JSON NOT NULL,
    steps BIGINT NOT NULL,
    examples BIGINT NOT NULL,
    wall_seconds DOUBLE PRECISION NOT NULL,
    attempts BIGINT NOT NULL,
    micro_batch BIGINT,
    device TEXT NOT NULL,
    host TEXT NOT NULL,
    started_at TIMESTAMP WITH TIME ZONE,
    finished_at TIMESTAMP WITH TIME ZONE,
    failure JSON,
    provenance JSON NOT NULL,
    info JSON NOT NULL,
    CONSTRAINT pk_tuner_trial PRIMARY KEY (study, number),
    CONSTRAINT fk_tuner_trial_tuner_study FOREIGN KEY(study) REFERENCES tuner_study (name) ON DELETE CASCADE
);
CREATE TABLE tuner_evaluation (
    study TEXT NOT NULL,
    number BIGINT NOT NULL,
    step BIGINT NOT NULL,
    examples BIGINT NOT NULL,
    seconds DOUBLE PRECISION NOT NULL,
    lr DOUBLE PRECISION NOT NULL,
    train_loss DOUBLE PRECISION NOT NULL,
    grad_norm DOUBLE PRECISION NOT NULL,
    metrics JSON NOT NULL,
    CONSTRAINT pk_tuner_evaluation PRIMARY KEY (study, number, step),
    CONSTRAINT fk_tuner_evaluation_tuner_trial FOREIGN KEY(study, number) REFERENCES tuner_trial (study, number) ON DELETE CASCADE
);
CREATE TABLE tuner_lr_curve (
    study TEXT NOT NULL,
    number BIGINT NOT NULL,
    points JSON NOT NULL,
    suggested_lr DOUBLE PRECISION,
    low DOUBLE PRECISION,
    high DOUBLE PRECISION,
    diverges_at DOUBLE PRECISION,
    flags JSON NOT NULL,
    reason TEXT NOT NULL,
    interval_low DOUBLE PRECISION,
    interval_high DOUBLE PRECISION,
    safe_low DOUBLE PRECISION,
    safe_high DOUBLE PRECISION,
    grid JSON NOT NULL,
    optima JSON NOT NULL,
    axis TEXT NOT NULL,
    method TEXT NOT NULL,
    run_steps BIGINT,
    cost DOUBLE PRECISION NOT NULL,
    CONSTRAINT pk_tuner_lr_curve PRIMARY KEY (study, number),
    CONSTRAINT fk_tuner_lr_curve_tuner_trial FOREIGN KEY(study, number) REFERENCES tuner_trial (study, number) ON DELETE CASCADE
);
CREATE TABLE tuner_step_lrs (
    study TEXT NOT NULL,
    number BIGINT NOT NULL,
    lrs BYTEA NOT NULL,
    CONSTRAINT pk_tuner_step_lrs PRIMARY KEY (study, number),
    CONSTRAINT fk_tuner_step_lrs_tuner_trial FOREIGN KEY(study, number) REFERENCES tuner_trial (study, number) ON DELETE CASCADE
);
CREATE TABLE tuner_alembic_version (
    version_num VARCHAR(32) NOT NULL,
    CONSTRAINT tuner_alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO tuner_alembic_version VALUES ('0001');
INSERT INTO tuner_study (name, state, spec, created_at, updated_at, answer, stop_requested, provenance)
VALUES ('released', 'completed', '{"study": {"name": "released", "metric": "acc"}}', '2026-01-02 03:04:05.678901+00', '2026-01-02 03:04:05.678901+00',
    'sgd', false, '{}');
INSERT INTO tuner_trial (study, number, arm, stage, seed, state, point, params, configuration, stop_rules, length,
    value, metrics, steps, examples, wall_seconds, attempts, micro_batch, device, host, started_at, finished_at,
    failure, provenance, info)
VALUES ('released', 0, 'sgd-constant', 'explore', 1, 'completed', '{"lr": 0.1}', '{"lr": 0.1}',
    '{"optimizer": "sgd", "optimizer_args": {"lr": 0.1}, "schedule": "constant",
      "schedule_args": {}, "batch_size": 64}', '[]', 1.0, 0.5, '{"loss": {"$float": "nan"}, "acc": 0.5}',
    20, 1280, 1.5, 1, NULL, 'cpu', 'trainer', '2026-01-02 03:04:05.678901+00', NULL, NULL, '{"commit": "abc"}', '{}');
INSERT INTO tuner_evaluation (study, number, step, examples, seconds, lr, train_loss, grad_norm, metrics)
VALUES ('released', 0, 10, 640, 0.7, 0.1, 'NaN', 1.5, '{"loss": 1.0}'),
    ('released', 0, 20, 1280, 1.4, 0.05, 0.5, 1.5, '{"loss": 0.5}');
INSERT INTO tuner_step_lrs (study, number, lrs) VALUES ('released', 0, '\x9A9999999999B93F9A9999999999A93F');
INSERT INTO tuner_lr_curve (study, number, points, suggested_lr, low, high, diverges_at, flags, reason,
    interval_low, interval_high, safe_low, safe_high, grid, optima, axis, method, run_steps, cost)
VALUES ('released', 0, '[[1e-05, 2.0], [0.1, {"$float": "inf"}]]', 0.001, NULL, 0.01, 0.1, '["boundary"]',
    'steepest', 0.0005, 0.002, NULL, 0.003, '[[12, 0.001, 2.0], [12, 0.1, {"$float": "inf"}]]', '[[12, 0.001]]',
    'lr', 'forks', 300, 350.5);
INSERT INTO tuner_lease (study, owner, host, pid, expires_at)
VALUES ('released', 'somebody', 'trainer', 1, '2026-01-02 03:04:05.678901+00');
