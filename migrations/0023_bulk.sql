-- Bulk operations: retry, cancel or move all jobs that match a filter.
--
-- An operation is a row. The scheduler works through it, a window of ids a transaction, up to the newest id that there was
-- when it began: so each step is short, a crash loses at most the step that was under way, and any scheduler goes on from the
-- cursor. Rows are locked and the filter is asked again of each as it then is: a job that left the filter meanwhile is left
-- alone. Audited when it begins, with its filter and count, when it ends, with what it did, and in each step once for each
-- tenant whose jobs it changed.
--   ops        bulk_preview, bulk_start, bulk_stop
--   scheduler  bulk_step
SET LOCAL ROLE reeve_owner;

CREATE TABLE reeve.bulk_operations (
  id         uuid PRIMARY KEY,
  act        text NOT NULL CHECK (act IN ('retry', 'cancel', 'move')),
  -- Of tenant, kind, queue, state, before (made before this time). All must hold.
  filter     jsonb NOT NULL,
  -- What `move` sets: priority, run_at.
  target     jsonb NOT NULL,
  actor      text NOT NULL,
  reason     text NOT NULL,
  state      text NOT NULL CHECK (state IN ('running', 'done', 'stopped')),
  -- Ids up to `cursor` have been looked at; those behind `upto` are younger than the operation.
  cursor     uuid NOT NULL,
  upto       uuid NOT NULL,
  matched    bigint NOT NULL,
  changed    bigint NOT NULL DEFAULT 0,
  started_at timestamptz NOT NULL,
  ended_at   timestamptz
);
CREATE INDEX bulk_operations_running ON reeve.bulk_operations (started_at) WHERE state = 'running';
GRANT SELECT ON reeve.bulk_operations TO reeve_ops;
GRANT SELECT, INSERT, UPDATE ON reeve.bulk_operations TO reeve_dispatch;

SET LOCAL ROLE reeve_dispatch;

-- Whether an act may touch a job as it is, and the filter means it. One rule for preview and steps.
CREATE FUNCTION reeve.bulk_matches(j reeve.jobs, act text, filter jsonb) RETURNS boolean LANGUAGE sql STABLE
  SET search_path = pg_catalog, pg_temp AS $$
  SELECT (filter ->> 'tenant' IS NULL OR j.tenant_id = filter ->> 'tenant')
     AND (filter ->> 'kind' IS NULL OR j.kind = filter ->> 'kind')
     AND (filter ->> 'queue' IS NULL OR j.queue = filter ->> 'queue')
     AND (filter ->> 'state' IS NULL OR j.state = filter ->> 'state')
     AND (filter ->> 'before' IS NULL OR j.created_at < (filter ->> 'before')::timestamptz)
     AND CASE act WHEN 'retry' THEN j.state IN ('dead', 'quarantined', 'retryable', 'scheduled')
                  -- Priority 0 belongs to kinds with a deadline, which are not reordered by hand.
                  WHEN 'move' THEN j.state IN ('scheduled', 'available', 'retryable') AND j.priority > 0
                  -- A running job that was asked to stop already has nothing to gain.
                  ELSE j.cancel_reason IS NULL END
$$;

CREATE FUNCTION reeve.require_bulk(act text, filter jsonb, target jsonb) RETURNS void LANGUAGE plpgsql STABLE
  SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  bad text;
BEGIN
  IF act IS NULL OR act NOT IN ('retry', 'cancel', 'move') THEN
    RAISE EXCEPTION 'reeve: a bulk operation retries, cancels or moves' USING ERRCODE = 'RV005';
  END IF;
  IF jsonb_typeof(filter) IS DISTINCT FROM 'object' OR filter = '{}' THEN
    RAISE EXCEPTION 'reeve: a bulk operation needs a filter' USING ERRCODE = 'RV005',
      HINT = 'Give at least one of tenant, kind, queue, state and age: "all jobs of everybody" is never meant.';
  END IF;
  SELECT f.key INTO bad FROM jsonb_each(filter) f
  WHERE f.key NOT IN ('tenant', 'kind', 'queue', 'state', 'before') OR jsonb_typeof(f.value) <> 'string' LIMIT 1;
  IF FOUND THEN
    RAISE EXCEPTION 'reeve: "%" is no filter of a bulk operation', left(bad, 60) USING ERRCODE = 'RV005',
      HINT = 'Filters are tenant, kind, queue, state, before; each is a text.';
  END IF;
  SELECT t.key INTO bad FROM jsonb_each(target) t WHERE t.key NOT IN ('priority', 'run_at') OR act <> 'move' LIMIT 1;
  IF FOUND OR (act = 'move' AND coalesce(target, '{}') = '{}') THEN
    RAISE EXCEPTION 'reeve: a move, and only a move, says a priority or a time' USING ERRCODE = 'RV005';
  END IF;
  IF (target ->> 'priority')::integer NOT BETWEEN 1 AND 4 THEN
    RAISE EXCEPTION 'reeve: priority must be 1 (first) to 4 (last), not %', target ->> 'priority' USING ERRCODE = 'RV005';
  END IF;
  IF NOT (target ->> 'run_at')::timestamptz BETWEEN '2000-01-01' AND now() + interval '10 years' THEN
    RAISE EXCEPTION 'reeve: run_at must lie between the year 2000 and ten years from now' USING ERRCODE = 'RV005';
  END IF;
END $$;

-- What would be changed, counted. Changes nothing.
CREATE FUNCTION reeve.bulk_preview(act text, filter jsonb, target jsonb)
  RETURNS TABLE (tenant_id text, kind text, state text, jobs bigint) LANGUAGE plpgsql STABLE SECURITY DEFINER
  SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
  PERFORM reeve.require_bulk(bulk_preview.act, bulk_preview.filter, bulk_preview.target);
  RETURN QUERY SELECT j.tenant_id, j.kind, j.state, count(*) FROM reeve.jobs j
  WHERE reeve.bulk_matches(j, bulk_preview.act, bulk_preview.filter) GROUP BY 1, 2, 3 ORDER BY 1, 2, 3;
END $$;

CREATE FUNCTION reeve.bulk_start(act text, filter jsonb, target jsonb, actor text, reason text) RETURNS uuid
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  operation uuid := reeve.new_id();
  matched bigint;
BEGIN
  PERFORM reeve.require_bulk(act, filter, target);
  IF coalesce(btrim(reason), '') = '' THEN
    RAISE EXCEPTION 'reeve: a bulk operation needs a reason' USING ERRCODE = 'RV005';
  END IF;
  SELECT count(*) INTO matched FROM reeve.jobs j WHERE reeve.bulk_matches(j, act, filter);
  INSERT INTO reeve.bulk_operations (id, act, filter, target, actor, reason, state, cursor, upto, matched, started_at)
  VALUES (operation, act, filter, target, actor, reason, 'running', '00000000-0000-0000-0000-000000000000',
          coalesce((SELECT j.id FROM reeve.jobs j ORDER BY j.id DESC LIMIT 1), '00000000-0000-0000-0000-000000000000'),
          matched, now());
  PERFORM reeve.audit_append('-', actor, 'bulk.started', 'bulk:' || operation,
    format('%s of %s jobs where %s%s: %s', act, matched, filter, CASE WHEN act = 'move' THEN ' to ' || target::text END, reason),
    '{}', NULL, NULL, NULL);
  RETURN operation;
END $$;

-- Ends an operation before its time; what it changed stays changed. Returns its former state, or NULL: no such operation.
CREATE FUNCTION reeve.bulk_stop(operation uuid, actor text, reason text) RETURNS text LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  o reeve.bulk_operations;
BEGIN
  SELECT * INTO o FROM reeve.bulk_operations x WHERE x.id = operation FOR UPDATE;
  IF o.state = 'running' THEN
    UPDATE reeve.bulk_operations x SET state = 'stopped', ended_at = now() WHERE x.id = operation;
    PERFORM reeve.audit_append('-', actor, 'bulk.stopped', 'bulk:' || operation,
      format('%s of %s jobs were changed: %s', o.changed, o.matched, reason), '{}', NULL, NULL, NULL);
  END IF;
  RETURN o.state;
END $$;
GRANT EXECUTE ON FUNCTION reeve.bulk_preview(text, jsonb, jsonb), reeve.bulk_start(text, jsonb, jsonb, text, text),
  reeve.bulk_stop(uuid, text, text) TO reeve_ops;

-- The jobs of one window that are still meant, changed. Returns them, for the audit.
CREATE FUNCTION reeve.bulk_change(o reeve.bulk_operations, ids uuid[])
  RETURNS TABLE (tenant_id text, queue text, region text) LANGUAGE plpgsql VOLATILE
  SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
  IF o.act = 'cancel' THEN
    RETURN QUERY WITH asked AS (
      UPDATE reeve.jobs j SET cancel_reason = left(o.reason, 500) WHERE j.id = ANY (ids) AND j.state = 'running'
      RETURNING j.tenant_id, j.queue, j.region),
    gone AS (
      DELETE FROM reeve.jobs j WHERE j.id = ANY (ids) AND j.state <> 'running' RETURNING j.*),
    history AS (
      INSERT INTO reeve.job_history (id, tenant_id, kind, queue, region, state, priority, attempt, attempts_max, rescues,
                                     run_at, created_at, attempted_at, worker, unique_key, traceparent, payload, last_error)
      SELECT g.id, g.tenant_id, g.kind, g.queue, g.region, 'cancelled', g.priority, g.attempt, g.attempts_max, g.rescues,
             g.run_at, g.created_at, g.attempted_at, g.worker, g.unique_key, g.traceparent, g.payload, left(o.reason, 500)
      FROM gone g)
    SELECT * FROM asked UNION ALL SELECT g.tenant_id, g.queue, g.region FROM gone g;
  ELSIF o.act = 'move' THEN
    RETURN QUERY UPDATE reeve.jobs j SET priority = coalesce((o.target ->> 'priority')::smallint, j.priority),
      run_at = coalesce((o.target ->> 'run_at')::timestamptz, j.run_at),
      state = CASE WHEN o.target ->> 'run_at' IS NULL THEN j.state
                   WHEN (o.target ->> 'run_at')::timestamptz <= now() THEN 'available'
                   WHEN j.state = 'available' THEN 'scheduled' ELSE j.state END
    WHERE j.id = ANY (ids) RETURNING j.tenant_id, j.queue, j.region;
  ELSE
    -- Not of closed tenants, and of the parked jobs with one dedupe key only the first, where no live job has it.
    RETURN QUERY UPDATE reeve.jobs j SET state = 'available', run_at = now(), rescues = 0, cancel_reason = NULL,
      attempts_max = j.attempt + (SELECT coalesce(max(k.attempts_max), 1) FROM reeve.kinds k WHERE k.name = j.kind)
    WHERE j.id = ANY (ids)
      AND EXISTS (SELECT FROM reeve.tenants t WHERE t.id = j.tenant_id AND t.state <> 'closed')
      AND (j.unique_key IS NULL OR j.state IN ('scheduled', 'retryable') OR NOT EXISTS (
        SELECT FROM reeve.jobs x WHERE x.tenant_id = j.tenant_id AND x.kind = j.kind AND x.unique_key = j.unique_key
          AND x.id <> j.id AND (x.state IN ('scheduled', 'available', 'running', 'retryable') OR x.id = ANY (ids) AND x.id < j.id)))
    RETURNING j.tenant_id, j.queue, j.region;
  END IF;
END $$;

-- Does the next step of the oldest running operation that nobody else is at: looks at up to n jobs. Returns no row when there
-- is nothing to do.
CREATE FUNCTION reeve.bulk_step(n integer) RETURNS TABLE (operation uuid, changed bigint, ended boolean)
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
  o reeve.bulk_operations;
  looked uuid[];
  ids uuid[];
  entries reeve.audit_entry[];
  lanes text[];
BEGIN
  SELECT x.* INTO o FROM reeve.bulk_operations x WHERE x.state = 'running'
  ORDER BY x.started_at, x.id LIMIT 1 FOR UPDATE SKIP LOCKED;
  IF NOT FOUND THEN
    RETURN;
  END IF;
  -- A window of the primary key, whatever of it the filter means: a step is bounded also where hardly a job matches.
  looked := ARRAY(SELECT j.id FROM reeve.jobs j WHERE j.id > o.cursor AND j.id <= o.upto ORDER BY j.id LIMIT n);
  -- Whoever holds a row is waited for, and the filter then asked of what it left.
  ids := ARRAY(SELECT j.id FROM reeve.jobs j WHERE j.id = ANY (looked) AND reeve.bulk_matches(j, o.act, o.filter)
               ORDER BY j.id FOR UPDATE);
  operation := o.id;
  ended := cardinality(looked) < n;
  WITH done AS MATERIALIZED (SELECT * FROM reeve.bulk_change(o, ids)),
  tenants AS (SELECT d.tenant_id, count(*) AS jobs FROM done d GROUP BY 1)
  SELECT (SELECT coalesce(sum(t.jobs), 0) FROM tenants t),
         (SELECT array_agg(DISTINCT d.queue || '@' || d.region) FROM done d),
         (SELECT array_agg(ROW(t.tenant_id, o.actor, CASE o.act WHEN 'retry' THEN 'job.bulk_retried'
                             WHEN 'cancel' THEN 'job.bulk_cancelled' ELSE 'job.bulk_moved' END, 'bulk:' || o.id,
                           format('%s jobs: %s', t.jobs, o.reason), '{}', NULL, NULL, NULL, NULL)::reeve.audit_entry
                           ORDER BY t.tenant_id) FROM tenants t)
  INTO changed, lanes, entries;
  UPDATE reeve.bulk_operations x SET cursor = coalesce(looked[cardinality(looked)], x.cursor),
    changed = x.changed + bulk_step.changed, state = CASE WHEN ended THEN 'done' ELSE 'running' END,
    ended_at = CASE WHEN ended THEN now() END
  WHERE x.id = o.id;
  IF o.act <> 'cancel' THEN
    PERFORM reeve.ring_doorbell(split_part(lane, '@', 1), split_part(lane, '@', 2)) FROM unnest(lanes) lane;
  END IF;
  IF ended THEN
    entries := coalesce(entries, '{}') || ROW('-', o.actor, 'bulk.finished', 'bulk:' || o.id,
      format('%s of %s jobs were changed', o.changed + changed, o.matched), '{}', NULL, NULL, NULL, NULL)::reeve.audit_entry;
  END IF;
  IF entries IS NOT NULL THEN
    PERFORM reeve.audit_append_many(entries);
  END IF;
  RETURN NEXT;
END $$;
GRANT EXECUTE ON FUNCTION reeve.bulk_step(integer) TO reeve_scheduler;

RESET ROLE;
