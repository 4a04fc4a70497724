#!/bin/sh
# Runs once, when PostgreSQL's volume is empty: a database and a user each for the tuner and MLflow.
# psql reads the passwords from the environment, where no list of processes shows them.
set -eu

psql --set ON_ERROR_STOP=1 --no-psqlrc --username "$POSTGRES_USER" --dbname postgres <<'SQL'
\getenv tuner_password TUNER_DB_PASSWORD
\getenv mlflow_password MLFLOW_DB_PASSWORD
CREATE ROLE tuner LOGIN PASSWORD :'tuner_password';
CREATE ROLE mlflow LOGIN PASSWORD :'mlflow_password';
CREATE DATABASE tuner OWNER tuner;
CREATE DATABASE mlflow OWNER mlflow;
REVOKE CONNECT ON DATABASE tuner, mlflow, postgres FROM PUBLIC;
SQL
