-- The smallest table that could be called a queue: what PostgreSQL itself can do, without tenants, policies or history.
CREATE TABLE limit_jobs (
  id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  tenant_id  text NOT NULL,
  state      text NOT NULL DEFAULT 'available',
  run_at     timestamptz NOT NULL DEFAULT now(),
  attempt    integer NOT NULL DEFAULT 0,
  payload    jsonb NOT NULL
) WITH (fillfactor = 85, autovacuum_vacuum_cost_delay = 0);
CREATE INDEX limit_jobs_ready ON limit_jobs (run_at, id) WHERE state = 'available';
