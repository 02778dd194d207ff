-- The queue's tables. All functions on them are in 0006_queue.sql.
--
-- reeve.jobs holds what still needs something: live jobs, and dead or quarantined ones, which wait for an operator.
-- Whatever is over moves to reeve.job_history, in day partitions that retention drops whole.
-- Every index is partial, so parked and waiting rows cost the claim nothing.
SET LOCAL ROLE reeve_owner;

-- PostgreSQL reads each CHECK anew at every INSERT statement, some 1.5 µs apiece, so there is one; lengths are types,
-- and ranges are checked by the functions, which alone may write here.
CREATE TABLE reeve.jobs (
  id               uuid PRIMARY KEY,
  tenant_id        text COLLATE "C" NOT NULL,
  kind             text COLLATE "C" NOT NULL,
  queue            text COLLATE "C" NOT NULL,
  region           text COLLATE "C" NOT NULL,
  -- text and CHECK, never an enum: enum equality is not leakproof, and an index behind a policy goes unused.
  state            text COLLATE "C" NOT NULL,
  priority         smallint NOT NULL,
  attempt          integer NOT NULL DEFAULT 0,
  attempts_max     integer NOT NULL,
  -- Leases that ended without a settlement. Three send the job to quarantine.
  rescues          integer NOT NULL DEFAULT 0,
  run_at           timestamptz NOT NULL,
  created_at       timestamptz NOT NULL DEFAULT now(),
  attempted_at     timestamptz,
  lease_token      uuid,
  lease_expires_at timestamptz,
  worker           text,
  cancel_reason    text,
  unique_key       varchar(200) COLLATE "C",
  traceparent      varchar(64),
  payload          jsonb NOT NULL,
  last_error       text,
  CONSTRAINT state CHECK (CASE WHEN lease_token IS NULL
                          THEN state IN ('scheduled', 'available', 'retryable', 'dead', 'quarantined')
                          ELSE state = 'running' END)
) WITH (fillfactor = 85, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000,
        autovacuum_vacuum_cost_delay = 0);

CREATE INDEX jobs_ready   ON reeve.jobs (queue, region, tenant_id, priority, run_at, id) WHERE state = 'available';
CREATE INDEX jobs_running ON reeve.jobs (queue, region, tenant_id) WHERE state = 'running';
CREATE INDEX jobs_due     ON reeve.jobs (run_at) WHERE state IN ('scheduled', 'retryable');
CREATE INDEX jobs_parked  ON reeve.jobs (tenant_id, id) WHERE state IN ('dead', 'quarantined');
CREATE UNIQUE INDEX jobs_unique ON reeve.jobs (tenant_id, kind, unique_key)
  WHERE unique_key IS NOT NULL AND state IN ('scheduled', 'available', 'running', 'retryable');

-- Attempts that did not finish their job: failures, snoozes, expired leases. The finishing attempt stands in history.
CREATE TABLE reeve.job_attempts (
  tenant_id   text COLLATE "C" NOT NULL,
  job_id      uuid NOT NULL,
  attempt     integer NOT NULL,
  outcome     text NOT NULL CHECK (outcome IN ('retry', 'snooze', 'dead', 'quarantine', 'lease_expired')),
  worker      text,
  started_at  timestamptz,
  ended_at    timestamptz NOT NULL DEFAULT now(),
  error       text
);
CREATE INDEX job_attempts_job ON reeve.job_attempts (tenant_id, job_id, ended_at);
CREATE INDEX job_attempts_ended ON reeve.job_attempts (ended_at);

CREATE TABLE reeve.job_history (
  id           uuid NOT NULL,
  tenant_id    text COLLATE "C" NOT NULL,
  kind         text COLLATE "C" NOT NULL,
  queue        text COLLATE "C" NOT NULL,
  region       text COLLATE "C" NOT NULL,
  state        text COLLATE "C" NOT NULL CHECK (state IN ('completed', 'cancelled', 'dead', 'quarantined')),
  priority     smallint NOT NULL,
  attempt      integer NOT NULL,
  attempts_max integer NOT NULL,
  rescues      integer NOT NULL,
  run_at       timestamptz NOT NULL,
  created_at   timestamptz NOT NULL,
  attempted_at timestamptz,
  finished_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
  worker       text,
  unique_key   text COLLATE "C",
  traceparent  text,
  payload      jsonb NOT NULL,
  last_error   text
) PARTITION BY RANGE (finished_at);
CREATE INDEX job_history_tenant ON reeve.job_history (tenant_id, id);

-- Where rows go when the day's partition is not there yet: settling must never fail for want of upkeep.
CREATE TABLE reeve.job_history_default PARTITION OF reeve.job_history DEFAULT;
-- Found by time there alone: for its own retention, and to see whether a day may still get a partition.
CREATE INDEX job_history_default_finished ON reeve.job_history_default (finished_at);

-- A worker with nothing to do says so here; only then does an enqueue NOTIFY. A busy fleet polls anyway, and a NOTIFY
-- takes a lock of the whole database at commit.
CREATE TABLE reeve.doorbells (
  queue         text COLLATE "C" NOT NULL,
  region        text COLLATE "C" NOT NULL,
  waiting_until timestamptz NOT NULL,
  PRIMARY KEY (queue, region)
) WITH (fillfactor = 50);

DO $$
DECLARE
  t text;
BEGIN
  FOREACH t IN ARRAY ARRAY['jobs', 'job_attempts', 'job_history', 'job_history_default'] LOOP
    EXECUTE format('ALTER TABLE reeve.%I ENABLE ROW LEVEL SECURITY', t);
    EXECUTE format('ALTER TABLE reeve.%I FORCE ROW LEVEL SECURITY', t);
    -- Partitions are reached through their parent alone: no grant, no policy.
    CONTINUE WHEN t = 'job_history_default';
    EXECUTE format('CREATE POLICY own_rows ON reeve.%I FOR SELECT TO reeve_app, reeve_worker
                    USING (tenant_id = (SELECT reeve.tenant()))', t);
    EXECUTE format('CREATE POLICY dispatch ON reeve.%I TO reeve_dispatch USING (true) WITH CHECK (true)', t);
    EXECUTE format('CREATE POLICY ops_read ON reeve.%I FOR SELECT TO reeve_ops USING (true)', t);
    EXECUTE format('GRANT SELECT ON reeve.%I TO reeve_worker, reeve_ops', t);
    EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON reeve.%I TO reeve_dispatch', t);
  END LOOP;
END $$;
-- Not when attempts began and ended: that would tell an app how long a webhook's port took to refuse, and so map our
-- network (see webhook_attempts).
GRANT SELECT (id, tenant_id, kind, queue, state, priority, attempt, attempts_max, run_at, created_at, unique_key,
              traceparent, payload, last_error) ON reeve.jobs, reeve.job_history TO reeve_app;
GRANT SELECT (tenant_id, job_id, attempt, outcome, error) ON reeve.job_attempts TO reeve_app;
GRANT SELECT, INSERT, UPDATE ON reeve.doorbells TO reeve_dispatch;

-- Makes the partitions of today and the coming days and drops those past their time. Runs as the owner, since only
-- an owner may make or drop a table; takes no name from its caller.
CREATE FUNCTION reeve.history_upkeep(days_ahead integer, keep_days integer)
  RETURNS TABLE (made integer, dropped integer) LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  day date;
  part text;
BEGIN
  IF days_ahead NOT BETWEEN 0 AND 60 OR keep_days NOT BETWEEN 1 AND 3650 THEN
    RAISE EXCEPTION 'reeve: days_ahead must be 0 to 60 and keep_days 1 to 3650' USING ERRCODE = '22023';
  END IF;
  made := 0;
  dropped := 0;
  -- One upkeep at a time; a second caller finds the work done.
  IF NOT pg_try_advisory_xact_lock(7261, 1) THEN
    RETURN NEXT;
    RETURN;
  END IF;
  SET LOCAL lock_timeout = '2s';
  FOR i IN 0..days_ahead LOOP
    day := (now() AT TIME ZONE 'UTC')::date + i;
    part := 'job_history_' || to_char(day, 'YYYYMMDD');
    CONTINUE WHEN to_regclass('reeve.' || part) IS NOT NULL;
    -- A day whose rows already fell into the default partition stays there: splitting it would lock out settlement.
    CONTINUE WHEN EXISTS (SELECT FROM reeve.job_history_rows_between(day, day + 1));
    EXECUTE format('CREATE TABLE reeve.%I PARTITION OF reeve.job_history FOR VALUES FROM (%L) TO (%L)', part,
                   day::text || ' 00:00:00+00', (day + 1)::text || ' 00:00:00+00');
    EXECUTE format('ALTER TABLE reeve.%I ENABLE ROW LEVEL SECURITY', part);
    EXECUTE format('ALTER TABLE reeve.%I FORCE ROW LEVEL SECURITY', part);
    made := made + 1;
  END LOOP;
  FOR part IN
    SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
    WHERE i.inhparent = 'reeve.job_history'::regclass AND c.relname ~ '^job_history_[0-9]{8}$'
      AND to_date(right(c.relname, 8), 'YYYYMMDD') < (now() AT TIME ZONE 'UTC')::date - keep_days
  LOOP
    EXECUTE format('DROP TABLE reeve.%I', part);
    dropped := dropped + 1;
  END LOOP;
  RETURN NEXT;
END $$;
GRANT EXECUTE ON FUNCTION reeve.history_upkeep(integer, integer) TO reeve_scheduler;

SET LOCAL ROLE reeve_dispatch;

-- The owner is under the policies too and sees no row; this tells it whether a day has rows, and nothing else.
CREATE FUNCTION reeve.job_history_rows_between(from_day date, to_day date) RETURNS TABLE (found boolean)
  LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
  SELECT true FROM reeve.job_history h
  WHERE h.finished_at >= from_day::timestamp AT TIME ZONE 'UTC' AND h.finished_at < to_day::timestamp AT TIME ZONE 'UTC'
  LIMIT 1
$$;
GRANT EXECUTE ON FUNCTION reeve.job_history_rows_between(date, date) TO reeve_owner;

RESET ROLE;
