#!/bin/sh
# Two databases, each with its own role. PostgreSQL's image runs this once, on an empty volume.
set -eu
psql --no-psqlrc --set ON_ERROR_STOP=1 --quiet --username "$POSTGRES_USER" --dbname postgres <<'SQL'
\getenv dagster_password DAGSTER_PG_PASSWORD
\getenv mlflow_password MLFLOW_PG_PASSWORD
create role dagster login password :'dagster_password';
create role mlflow login password :'mlflow_password';
create database dagster owner dagster;
create database mlflow owner mlflow;
revoke connect on database dagster from public;
revoke connect on database mlflow from public;
SQL
