-- How far running jobs have come, as their handlers say (`worker/src/runtime/progress.rs`).
--
-- A narrow table of its own: reeve.jobs gets neither a column nor an index, and a job that reports nothing costs nothing, at
-- its settlement either. A row names the lease under which it was reported and is shown only while that lease is the
-- job's; so it is over when the job settles, whenever it is deleted: by the worker's next report, or by the scheduler where
-- the worker is gone. Nothing indexed changes in an update, and the pages have room: updates are HOT.
--   worker     report_progress
--   scheduler  prune_progress
SET LOCAL ROLE reeve_owner;

CREATE TABLE reeve.job_progress (
  job_id      uuid PRIMARY KEY,
  tenant_id   text COLLATE "C" NOT NULL,
  lease_token uuid NOT NULL,
  -- A constant of the worker's program; cut here all the same.
  step        varchar(80) NOT NULL,
  done        bigint NOT NULL,
  -- NULL: the handler cannot know.
  total       bigint,
  reported_at timestamptz NOT NULL
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 200);
CREATE INDEX job_progress_tenant ON reeve.job_progress (tenant_id);

ALTER TABLE reeve.job_progress ENABLE ROW LEVEL SECURITY;
ALTER TABLE reeve.job_progress FORCE ROW LEVEL SECURITY;
CREATE POLICY dispatch ON reeve.job_progress TO reeve_dispatch USING (true) WITH CHECK (true);
CREATE POLICY ops_read ON reeve.job_progress FOR SELECT TO reeve_ops USING (true);
GRANT SELECT ON reeve.job_progress TO reeve_ops;
GRANT SELECT, INSERT, UPDATE, DELETE ON reeve.job_progress TO reeve_dispatch;

SET LOCAL ROLE reeve_dispatch;

-- Stores reports of jobs that are still held by these tokens, and deletes those of leases that are over. Not worth an
-- fsync: what a crash loses is said again within a second. Returns how many were stored.
CREATE FUNCTION reeve.report_progress(ids uuid[], tokens uuid[], steps text[], dones bigint[], totals bigint[],
                                      over_ids uuid[], over_tokens uuid[]) RETURNS bigint LANGUAGE plpgsql VOLATILE
  SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  stored bigint;
BEGIN
  PERFORM set_config('synchronous_commit', 'off', true);
  DELETE FROM reeve.job_progress p USING unnest(over_ids, over_tokens) AS o (id, token)
  WHERE p.job_id = o.id AND p.lease_token = o.token;
  INSERT INTO reeve.job_progress AS p (job_id, tenant_id, lease_token, step, done, total, reported_at)
  SELECT j.id, j.tenant_id, j.lease_token, left(regexp_replace(r.step, '[[:cntrl:]]', '', 'g'), 80),
         greatest(r.done, 0), greatest(r.total, 0), now()
  FROM unnest(ids, tokens, steps, dones, totals) AS r (id, token, step, done, total)
  JOIN reeve.jobs j ON j.id = r.id AND j.lease_token = r.token
  ORDER BY j.id
  ON CONFLICT ON CONSTRAINT job_progress_pkey DO UPDATE SET lease_token = excluded.lease_token, step = excluded.step,
    done = excluded.done, total = excluded.total, reported_at = excluded.reported_at;
  GET DIAGNOSTICS stored = ROW_COUNT;
  RETURN stored;
END $$;
GRANT EXECUTE ON FUNCTION reeve.report_progress(uuid[], uuid[], text[], bigint[], bigint[], uuid[], uuid[]) TO reeve_worker;

-- Deletes at most n reports whose lease is over: those of workers that vanished. Returns how many.
CREATE FUNCTION reeve.prune_progress(n integer) RETURNS bigint LANGUAGE sql VOLATILE SECURITY DEFINER
  SET search_path = pg_catalog, pg_temp AS $$
  WITH gone AS (
    DELETE FROM reeve.job_progress p WHERE p.ctid = ANY (ARRAY(
      SELECT x.ctid FROM reeve.job_progress x
      WHERE NOT EXISTS (SELECT FROM reeve.jobs j WHERE j.id = x.job_id AND j.lease_token = x.lease_token) LIMIT n))
    RETURNING 1)
  SELECT count(*) FROM gone
$$;
GRANT EXECUTE ON FUNCTION reeve.prune_progress(integer) TO reeve_scheduler;

RESET ROLE;
