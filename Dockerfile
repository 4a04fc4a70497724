# MLflow's tracking server with a PostgreSQL driver, in the versions that the tests run.
FROM python:3.11.13-slim-bookworm

COPY requirements.lock /tmp/requirements.lock
RUN pip install --no-cache-dir --constraint /tmp/requirements.lock mlflow "psycopg[binary]" \
    && useradd --create-home mlflow \
    && install --directory --owner=mlflow /artifacts

USER mlflow
WORKDIR /home/mlflow
EXPOSE 5000
