-- The queue's functions for those who look after it, under the same rules as 0006_queue.sql.
--   scheduler  promote, rescue, prune, prune_stray_history
--   ops        ops_enqueue, retry_job, cancel_job
SET LOCAL ROLE reeve_dispatch;

-- Makes due jobs available. Returns how many.
CREATE FUNCTION reeve.promote(n integer) RETURNS integer LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  moved integer;
  lanes text[];
BEGIN
  WITH due AS (
    UPDATE reeve.jobs j SET state = 'available'
    WHERE j.id = ANY (ARRAY(SELECT x.id FROM reeve.jobs x
                            WHERE x.state IN ('scheduled', 'retryable') AND x.run_at <= now()
                            ORDER BY x.run_at LIMIT n FOR UPDATE SKIP LOCKED))
    RETURNING j.queue, j.region)
  SELECT count(*), array_agg(DISTINCT d.queue || '@' || d.region) INTO moved, lanes FROM due d;
  PERFORM reeve.ring_doorbell(split_part(lane, '@', 1), split_part(lane, '@', 2)) FROM unnest(lanes) lane;
  RETURN moved;
END $$;
GRANT EXECUTE ON FUNCTION reeve.promote(integer) TO reeve_scheduler;

-- Takes back jobs whose lease ran out. Three such ends without a settled attempt between them: quarantine, with the
-- workers' names as evidence, so that a job that kills its worker does not kill the fleet. Otherwise available again, or
-- dead when its attempts are used up. From the second time on only a job that had started counts: what merely stood in
-- the same buffer as a killer is given back uncounted. A job that was to be cancelled is: its worker took the order with it, and nobody else has it.
CREATE FUNCTION reeve.rescue(n integer)
  RETURNS TABLE (id uuid, tenant_id text, kind text, state text, worker text) LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
  lost record;
  next_state text;
  evidence text;
  entries reeve.audit_entry[] := '{}';
BEGIN
  FOR lost IN
    SELECT j.* FROM reeve.jobs j WHERE j.state = 'running' AND j.lease_expires_at < now()
    ORDER BY j.lease_expires_at LIMIT n FOR UPDATE SKIP LOCKED
  LOOP
    IF lost.attempted_at IS NULL AND lost.cancel_reason IS NULL THEN
      UPDATE reeve.jobs j SET state = 'available', attempt = lost.attempt - 1, lease_token = NULL, lease_expires_at = NULL
      WHERE j.id = lost.id;
      PERFORM reeve.ring_doorbell(lost.queue, lost.region);
      RETURN QUERY SELECT lost.id, lost.tenant_id, lost.kind, 'available', lost.worker;
      CONTINUE;
    END IF;
    INSERT INTO reeve.job_attempts (tenant_id, job_id, attempt, outcome, worker, started_at, error)
    VALUES (lost.tenant_id, lost.id, lost.attempt, 'lease_expired', lost.worker, lost.attempted_at,
            format('lease expired at %s without a settlement', lost.lease_expires_at));
    IF lost.cancel_reason IS NOT NULL THEN
      DELETE FROM reeve.jobs j WHERE j.id = lost.id;
      INSERT INTO reeve.job_history (id, tenant_id, kind, queue, region, state, priority, attempt, attempts_max, rescues,
                                     run_at, created_at, attempted_at, worker, unique_key, traceparent, payload, last_error)
      VALUES (lost.id, lost.tenant_id, lost.kind, lost.queue, lost.region, 'cancelled', lost.priority, lost.attempt,
              lost.attempts_max, lost.rescues + 1, lost.run_at, lost.created_at, lost.attempted_at, lost.worker,
              lost.unique_key, lost.traceparent, lost.payload, lost.cancel_reason);
      RETURN QUERY SELECT lost.id, lost.tenant_id, lost.kind, 'cancelled', lost.worker;
      CONTINUE;
    END IF;
    next_state := CASE WHEN lost.rescues + 1 >= 3 THEN 'quarantined'
                       WHEN lost.attempt >= lost.attempts_max THEN 'dead' ELSE 'available' END;
    evidence := format('lease expired %s times without a settlement; workers: %s', lost.rescues + 1,
      (SELECT string_agg(a.worker || ' (attempt ' || a.attempt || ')', ', ' ORDER BY a.ended_at)
       FROM reeve.job_attempts a
       WHERE a.tenant_id = lost.tenant_id AND a.job_id = lost.id AND a.outcome = 'lease_expired'));
    UPDATE reeve.jobs j SET state = next_state, rescues = lost.rescues + 1, lease_token = NULL,
           lease_expires_at = NULL, last_error = evidence
    WHERE j.id = lost.id;
    IF next_state = 'quarantined' THEN
      entries := entries || ROW(lost.tenant_id, 'scheduler', 'job.quarantined', 'job:' || lost.id, evidence, '{}', lost.id,
                                lost.attempt, NULL, NULL)::reeve.audit_entry;
    ELSIF next_state = 'available' THEN
      PERFORM reeve.ring_doorbell(lost.queue, lost.region);
    END IF;
    RETURN QUERY SELECT lost.id, lost.tenant_id, lost.kind, next_state, lost.worker;
  END LOOP;
  -- Together and last: the chains' heads are locked in one order, and two rescuers cannot wait for each other.
  IF cardinality(entries) > 0 THEN
    PERFORM reeve.audit_append_many(entries);
  END IF;
END $$;
GRANT EXECUTE ON FUNCTION reeve.rescue(integer) TO reeve_scheduler;

-- Moves parked jobs past their keep time to history and drops old attempt rows, at most n of each. Returns both counts.
CREATE FUNCTION reeve.prune(parked_days integer, attempt_days integer, n integer)
  RETURNS TABLE (parked bigint, attempts bigint) LANGUAGE sql SECURITY DEFINER
  SET search_path = pg_catalog, pg_temp AS $$
  WITH gone AS (
    DELETE FROM reeve.jobs j WHERE j.id = ANY (ARRAY(
      SELECT x.id FROM reeve.jobs x WHERE x.state IN ('dead', 'quarantined')
        AND coalesce(x.attempted_at, x.created_at) < now() - make_interval(days => parked_days)
      LIMIT n FOR UPDATE SKIP LOCKED))
    RETURNING j.*),
  history AS (
    INSERT INTO reeve.job_history (id, tenant_id, kind, queue, region, state, priority, attempt, attempts_max, rescues,
                                   run_at, created_at, attempted_at, worker, unique_key, traceparent, payload, last_error)
    SELECT g.id, g.tenant_id, g.kind, g.queue, g.region, g.state, g.priority, g.attempt, g.attempts_max, g.rescues,
           g.run_at, g.created_at, g.attempted_at, g.worker, g.unique_key, g.traceparent, g.payload, g.last_error
    FROM gone g),
  old AS (
    DELETE FROM reeve.job_attempts a WHERE a.ctid = ANY (ARRAY(
      SELECT x.ctid FROM reeve.job_attempts x WHERE x.ended_at < now() - make_interval(days => attempt_days) LIMIT n))
    RETURNING 1)
  SELECT (SELECT count(*) FROM gone), (SELECT count(*) FROM old)
$$;
GRANT EXECUTE ON FUNCTION reeve.prune(integer, integer, integer) TO reeve_scheduler;

-- Retention for history that fell into the default partition: days are dropped whole, and that one never is. Deletes
-- at most n rows, past their time by the same rule as a day's partition, and returns how many.
CREATE FUNCTION reeve.prune_stray_history(keep_days integer, n integer) RETURNS bigint LANGUAGE sql SECURITY DEFINER
  SET search_path = pg_catalog, pg_temp AS $$
  WITH gone AS (
    DELETE FROM reeve.job_history h
    WHERE h.tableoid = 'reeve.job_history_default'::regclass AND h.ctid = ANY (ARRAY(
      SELECT x.ctid FROM reeve.job_history x
      WHERE x.tableoid = 'reeve.job_history_default'::regclass
        AND x.finished_at < ((now() AT TIME ZONE 'UTC')::date - keep_days)::timestamp AT TIME ZONE 'UTC'
      LIMIT n))
    RETURNING 1)
  SELECT count(*) FROM gone
$$;
GRANT EXECUTE ON FUNCTION reeve.prune_stray_history(integer, integer) TO reeve_scheduler;

-- What operators do to one job. Each is audited in the same transaction, with who and why.
CREATE FUNCTION reeve.ops_enqueue(tenant text, kind text, payload jsonb, actor text, reason text) RETURNS uuid
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  t reeve.tenants := reeve.require_tenant(tenant);
  k reeve.kinds := reeve.require_kind(kind, payload, t);
  job uuid := reeve.insert_job(t, k, payload, NULL, NULL, NULL, NULL);
BEGIN
  PERFORM reeve.audit_append(tenant, actor, 'job.enqueued', 'job:' || job, reason, '{}', job, NULL, NULL);
  RETURN job;
END $$;

-- Gives a parked or waiting job a fresh set of attempts, now. Returns its former state, or NULL when there is no such job.
CREATE FUNCTION reeve.retry_job(job uuid, actor text, reason text) RETURNS text LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  j reeve.jobs;
BEGIN
  SELECT * INTO j FROM reeve.jobs x WHERE x.id = job FOR UPDATE;
  IF NOT FOUND THEN
    RETURN NULL;
  END IF;
  IF j.state NOT IN ('dead', 'quarantined', 'retryable', 'scheduled') THEN
    RAISE EXCEPTION 'reeve: job % is %; only dead, quarantined, retryable and scheduled jobs can be retried', job, j.state
      USING ERRCODE = 'RV008';
  END IF;
  PERFORM reeve.require_tenant(j.tenant_id);
  UPDATE reeve.jobs x SET state = 'available', run_at = now(), rescues = 0, cancel_reason = NULL,
         attempts_max = x.attempt + (SELECT coalesce(max(k.attempts_max), 1) FROM reeve.kinds k WHERE k.name = x.kind)
  WHERE x.id = job;
  PERFORM reeve.ring_doorbell(j.queue, j.region);
  PERFORM reeve.audit_append(j.tenant_id, actor, 'job.retried', 'job:' || job, reason, '{}', job, j.attempt, NULL);
  RETURN j.state;
EXCEPTION WHEN unique_violation THEN
  RAISE EXCEPTION 'reeve: another live job has the dedupe key of job %', job USING ERRCODE = 'RV008',
    HINT = 'Cancel that one first, or let it do the work.';
END $$;

-- Cancels a job: at once when it is not running, else its worker is told with the next renewal of its lease.
CREATE FUNCTION reeve.cancel_job(job uuid, actor text, reason text) RETURNS text LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  j reeve.jobs;
BEGIN
  SELECT * INTO j FROM reeve.jobs x WHERE x.id = job FOR UPDATE;
  IF NOT FOUND THEN
    RETURN NULL;
  END IF;
  IF coalesce(btrim(reason), '') = '' THEN
    RAISE EXCEPTION 'reeve: cancelling a job needs a reason' USING ERRCODE = 'RV005';
  END IF;
  PERFORM reeve.audit_append(j.tenant_id, actor, 'job.cancelled', 'job:' || job, reason, '{}', job, j.attempt, NULL);
  IF j.state = 'running' THEN
    UPDATE reeve.jobs x SET cancel_reason = left(reason, 500) WHERE x.id = job;
    RETURN j.state;
  END IF;
  DELETE FROM reeve.jobs x WHERE x.id = job;
  INSERT INTO reeve.job_history (id, tenant_id, kind, queue, region, state, priority, attempt, attempts_max, rescues,
                                 run_at, created_at, attempted_at, worker, unique_key, traceparent, payload, last_error)
  VALUES (j.id, j.tenant_id, j.kind, j.queue, j.region, 'cancelled', j.priority, j.attempt, j.attempts_max, j.rescues,
          j.run_at, j.created_at, j.attempted_at, j.worker, j.unique_key, j.traceparent, j.payload, left(reason, 500));
  RETURN j.state;
END $$;
GRANT EXECUTE ON FUNCTION reeve.ops_enqueue(text, text, jsonb, text, text), reeve.retry_job(uuid, text, text),
  reeve.cancel_job(uuid, text, text) TO reeve_ops;

RESET ROLE;
