-- The queue's functions: the only way to its rows. Each is SECURITY DEFINER with a pinned search_path, owned by
-- reeve_dispatch, whose policies cover the queue's tables, tenants, the audit log's end, and what emit() writes.
--   app        enqueue, enqueue_many
--   worker     claim, mark_started, wait_for_jobs, stop_waiting, renew, settle
-- What scheduler and operators call is in 0010_queue_upkeep.sql.
SET LOCAL ROLE reeve_dispatch;

CREATE FUNCTION reeve.ring_doorbell(queue text, region text) RETURNS void LANGUAGE plpgsql VOLATILE
  SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF EXISTS (SELECT FROM reeve.doorbells d WHERE d.queue = ring_doorbell.queue AND d.region = ring_doorbell.region
             AND d.waiting_until > now()) THEN
    PERFORM pg_notify('reeve_jobs', queue || '@' || region);
  END IF;
END $$;

-- The tenant's row, or a clear refusal. A closed tenant gets no work at all.
CREATE FUNCTION reeve.require_tenant(tenant text) RETURNS reeve.tenants LANGUAGE plpgsql STABLE
  SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  t reeve.tenants;
BEGIN
  SELECT * INTO t FROM reeve.tenants x WHERE x.id = tenant;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'reeve: tenant "%" is not registered', tenant USING ERRCODE = 'RV003',
      HINT = 'Call reeve.register_tenant(id, name) when the workspace is made.';
  END IF;
  IF t.state = 'closed' THEN
    RAISE EXCEPTION 'reeve: tenant "%" is closed', tenant USING ERRCODE = 'RV006',
      HINT = 'No job runs for a closed tenant.';
  END IF;
  RETURN t;
END $$;

CREATE FUNCTION reeve.require_kind(kind text, payload jsonb, t reeve.tenants) RETURNS reeve.kinds LANGUAGE plpgsql STABLE
  SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  k reeve.kinds;
BEGIN
  SELECT * INTO k FROM reeve.kinds x WHERE x.name = kind;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'reeve: unknown kind "%"', kind USING ERRCODE = 'RV004',
      HINT = 'Known kinds: ' || (SELECT coalesce(string_agg(x.name, ', ' ORDER BY x.name),
                                                 'none yet; run `reeve migrate`') FROM reeve.kinds x);
  END IF;
  IF jsonb_typeof(payload) IS DISTINCT FROM 'object' THEN
    RAISE EXCEPTION 'reeve: the payload of "%" must be a JSON object', kind USING ERRCODE = 'RV005';
  END IF;
  IF octet_length(payload::text) > k.payload_bytes_max THEN
    RAISE EXCEPTION 'reeve: the payload of "%" has % bytes, more than its limit of %', kind,
      octet_length(payload::text), k.payload_bytes_max USING ERRCODE = 'RV005',
      HINT = 'Payloads hold ids; keep the data in your tables.';
  END IF;
  IF t.state = 'closing' AND NOT k.runs_when_closing THEN
    RAISE EXCEPTION 'reeve: tenant "%" is closing; "%" does not run then', t.id, kind USING ERRCODE = 'RV006';
  END IF;
  RETURN k;
END $$;

-- One job into the table. On a live job with the same dedupe key: that job's id, and nothing is inserted.
CREATE FUNCTION reeve.insert_job(t reeve.tenants, k reeve.kinds, payload jsonb, dedupe_key text, run_at timestamptz,
                                 priority integer, traceparent text) RETURNS uuid LANGUAGE plpgsql VOLATILE
  SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  due timestamptz := coalesce(run_at, now());
  job uuid;
BEGIN
  IF priority NOT BETWEEN 1 AND 4 THEN
    RAISE EXCEPTION 'reeve: priority must be 1 (first) to 4 (last), not %', priority USING ERRCODE = 'RV005';
  END IF;
  -- Finite and near: what nobody means, and what a reader's calendar may not hold.
  IF NOT isfinite(due) OR due NOT BETWEEN '2000-01-01' AND now() + interval '10 years' THEN
    RAISE EXCEPTION 'reeve: run_at must lie between the year 2000 and ten years from now, not %', due USING ERRCODE = 'RV005';
  END IF;
  IF length(traceparent) > 64 THEN
    RAISE EXCEPTION 'reeve: a traceparent has at most 64 characters, not %', length(traceparent) USING ERRCODE = 'RV005';
  END IF;
  IF length(dedupe_key) NOT BETWEEN 1 AND 200 THEN
    RAISE EXCEPTION 'reeve: a dedupe key has 1 to 200 characters, not %', length(dedupe_key) USING ERRCODE = 'RV005';
  END IF;
  -- Again: the job that stood in the way may end between the insert and the look.
  FOR i IN 1..10 LOOP
    INSERT INTO reeve.jobs (id, tenant_id, kind, queue, region, state, priority, attempts_max, run_at, unique_key,
                            traceparent, payload)
    VALUES (reeve.new_id(), t.id, k.name, k.queue, t.region,
            CASE WHEN due > now() THEN 'scheduled' ELSE 'available' END, coalesce(priority, k.priority),
            k.attempts_max, due, dedupe_key, traceparent, payload)
    ON CONFLICT DO NOTHING RETURNING id INTO job;
    IF FOUND THEN
      IF due <= now() THEN
        PERFORM reeve.ring_doorbell(k.queue, t.region);
      END IF;
      RETURN job;
    END IF;
    SELECT j.id INTO job FROM reeve.jobs j
    WHERE j.tenant_id = t.id AND j.kind = k.name AND j.unique_key = dedupe_key
      AND j.state IN ('scheduled', 'available', 'running', 'retryable');
    IF FOUND THEN
      RETURN job;
    END IF;
  END LOOP;
  RAISE EXCEPTION 'reeve: the dedupe key "%" of kind "%" changes hands faster than it can be read', dedupe_key, k.name
    USING ERRCODE = 'RV007', HINT = 'Retry the transaction.';
END $$;

-- What reeve.enqueue falls back to: the same, step by step, with the refusals.
CREATE FUNCTION reeve.enqueue_carefully(kind text, payload jsonb, dedupe_key text, run_at timestamptz, priority integer,
                                        traceparent text, tenant_id text) RETURNS uuid
  LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  tenant text := reeve.caller_tenant();
  t reeve.tenants;
  k reeve.kinds;
BEGIN
  IF tenant_id <> tenant THEN
    RAISE EXCEPTION 'reeve: tenant_id "%" is not this transaction''s tenant', tenant_id USING ERRCODE = 'RV002',
      HINT = 'The argument may only confirm the context; leave it out.';
  END IF;
  t := reeve.require_tenant(tenant);
  k := reeve.require_kind(kind, payload, t);
  IF NOT k.app_may_enqueue THEN
    RAISE EXCEPTION 'reeve: "%" is made by Reeve itself and cannot be enqueued by an app', kind USING ERRCODE = 'RV004';
  END IF;
  RETURN reeve.insert_job(t, k, payload, dedupe_key, run_at, priority, traceparent);
END $$;

-- Enqueues in the caller's transaction. Returns the job's id; with a dedupe_key that a live job of this tenant and
-- kind has, that job's id. `tenant_id` may only confirm the context.
--   RV001 no context   RV002 another tenant   RV003 tenant unknown   RV004 kind unknown   RV005 bad argument
--   RV006 tenant closing or closed
CREATE FUNCTION reeve.enqueue(kind text, payload jsonb DEFAULT '{}', dedupe_key text DEFAULT NULL,
                              run_at timestamptz DEFAULT NULL, priority integer DEFAULT NULL,
                              traceparent text DEFAULT NULL, tenant_id text DEFAULT NULL) RETURNS uuid
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  f record;
  due timestamptz := coalesce(run_at, now());
  job uuid;
BEGIN
  -- The usual case in two statements, since each costs an app's transaction. Whatever is unusual falls through to the
  -- functions above, which say what is wrong.
  SELECT c.own, c.app, t.id, t.region, k.queue, k.priority, k.attempts_max,
         t.state = 'active' AND k.app_may_enqueue AND enqueue.dedupe_key IS NULL AND octet_length(enqueue.payload::text) <= k.payload_bytes_max
           AND jsonb_typeof(enqueue.payload) = 'object' AS usual,
         d.waiting_until > now() AS waited_for
  INTO f
  FROM reeve.settings s
  CROSS JOIN LATERAL (SELECT nullif(current_setting('reeve.tenant_id', true), '') AS own,
    CASE WHEN s.app_context_setting IS NOT NULL THEN nullif(current_setting(s.app_context_setting, true), '') END AS app) c
  JOIN reeve.tenants t ON t.id = coalesce(c.own, c.app)
  JOIN reeve.kinds k ON k.name = enqueue.kind
  LEFT JOIN reeve.doorbells d ON d.queue = k.queue AND d.region = t.region;
  IF f.usual AND coalesce(f.app, f.id) = f.id AND coalesce(enqueue.tenant_id, f.id) = f.id
     AND coalesce(enqueue.priority, 1) BETWEEN 1 AND 4 AND coalesce(length(enqueue.traceparent), 0) <= 64
     AND due BETWEEN '2000-01-01' AND now() + interval '10 years' THEN
    INSERT INTO reeve.jobs (id, tenant_id, kind, queue, region, state, priority, attempts_max, run_at, traceparent, payload)
    VALUES (reeve.new_id(), f.id, enqueue.kind, f.queue, f.region,
            CASE WHEN due > now() THEN 'scheduled' ELSE 'available' END, coalesce(enqueue.priority, f.priority),
            f.attempts_max, due, enqueue.traceparent, enqueue.payload)
    RETURNING id INTO job;
    IF f.waited_for AND due <= now() THEN
      PERFORM pg_notify('reeve_jobs', f.queue || '@' || f.region);
    END IF;
    RETURN job;
  END IF;
  RETURN reeve.enqueue_carefully(kind, payload, dedupe_key, run_at, priority, traceparent, tenant_id);
END $$;
GRANT EXECUTE ON FUNCTION reeve.enqueue(text, jsonb, text, timestamptz, integer, text, text) TO reeve_app;

-- The bulk form: a JSON array of {kind, payload, dedupe_key, run_at, priority, traceparent}. All or none.
-- Returns one id an element, in the array's order.
CREATE FUNCTION reeve.enqueue_many(jobs jsonb, tenant_id text DEFAULT NULL) RETURNS SETOF uuid
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  tenant text := reeve.caller_tenant();
  t reeve.tenants;
  k reeve.kinds;
  bad record;
  ids uuid[];
  inserted bigint;
BEGIN
  IF tenant_id <> tenant THEN
    RAISE EXCEPTION 'reeve: tenant_id "%" is not this transaction''s tenant', tenant_id USING ERRCODE = 'RV002',
      HINT = 'The argument may only confirm the context; leave it out.';
  END IF;
  IF jsonb_typeof(jobs) IS DISTINCT FROM 'array' THEN
    RAISE EXCEPTION 'reeve: jobs must be a JSON array' USING ERRCODE = 'RV005';
  END IF;
  SELECT key INTO bad FROM jsonb_array_elements(jobs) e, jsonb_object_keys(e) key
  WHERE key NOT IN ('kind', 'payload', 'dedupe_key', 'run_at', 'priority', 'traceparent') LIMIT 1;
  IF FOUND THEN
    RAISE EXCEPTION 'reeve: unknown field "%" in a job', bad.key USING ERRCODE = 'RV005',
      HINT = 'Fields: kind, payload, dedupe_key, run_at, priority, traceparent.';
  END IF;
  t := reeve.require_tenant(tenant);
  -- Each kind once for its rules, then each element against its kind's size and range.
  FOR bad IN SELECT DISTINCT e ->> 'kind' AS kind FROM jsonb_array_elements(jobs) e LOOP
    k := reeve.require_kind(bad.kind, '{}', t);
    IF NOT k.app_may_enqueue THEN
      RAISE EXCEPTION 'reeve: "%" is made by Reeve itself and cannot be enqueued by an app', bad.kind
        USING ERRCODE = 'RV004';
    END IF;
  END LOOP;
  FOR bad IN
    SELECT e ->> 'kind' AS kind, coalesce(e -> 'payload', '{}') AS payload FROM jsonb_array_elements(jobs) e
    JOIN reeve.kinds x ON x.name = e ->> 'kind'
    WHERE jsonb_typeof(coalesce(e -> 'payload', '{}')) <> 'object'
       OR octet_length((e -> 'payload')::text) > x.payload_bytes_max LIMIT 1
  LOOP
    PERFORM reeve.require_kind(bad.kind, bad.payload, t);
  END LOOP;
  -- The first element out of range goes through the single form, which says what is wrong with it.
  SELECT e.* INTO bad
  FROM jsonb_to_recordset(jobs) AS e (kind text, payload jsonb, dedupe_key text, run_at timestamptz, priority integer,
                                      traceparent text)
  WHERE e.priority NOT BETWEEN 1 AND 4 OR length(e.dedupe_key) NOT BETWEEN 1 AND 200 OR length(e.traceparent) > 64
     OR NOT isfinite(e.run_at) OR e.run_at NOT BETWEEN '2000-01-01' AND now() + interval '10 years' LIMIT 1;
  IF FOUND THEN
    k := reeve.require_kind(bad.kind, '{}', t);
    PERFORM reeve.insert_job(t, k, coalesce(bad.payload, '{}'), bad.dedupe_key, bad.run_at, bad.priority, bad.traceparent);
  END IF;
  WITH input AS MATERIALIZED (
    SELECT ord, reeve.new_id() AS id, x.name, x.queue, x.attempts_max, coalesce(e.priority, x.priority) AS priority,
           coalesce(e.payload, '{}') AS payload, coalesce(e.run_at, now()) AS run_at, e.dedupe_key, e.traceparent
    FROM ROWS FROM (jsonb_to_recordset(jobs) AS (kind text, payload jsonb, dedupe_key text, run_at timestamptz,
                                                 priority integer, traceparent text))
         WITH ORDINALITY AS e (kind, payload, dedupe_key, run_at, priority, traceparent, ord)
    JOIN reeve.kinds x ON x.name = e.kind),
  made AS (
    INSERT INTO reeve.jobs (id, tenant_id, kind, queue, region, state, priority, attempts_max, run_at, unique_key,
                            traceparent, payload)
    SELECT i.id, t.id, i.name, i.queue, t.region, CASE WHEN i.run_at > now() THEN 'scheduled' ELSE 'available' END,
           i.priority, i.attempts_max, i.run_at, i.dedupe_key, i.traceparent, i.payload
    FROM input i ORDER BY i.ord
    ON CONFLICT DO NOTHING RETURNING 1)
  SELECT (SELECT array_agg(i.id ORDER BY i.ord) FROM input i), (SELECT count(*) FROM made) INTO ids, inserted;
  PERFORM reeve.ring_doorbell(q.queue, t.region)
  FROM (SELECT DISTINCT x.queue FROM jsonb_array_elements(jobs) e JOIN reeve.kinds x ON x.name = e ->> 'kind') q;
  IF inserted = coalesce(cardinality(ids), 0) THEN
    RETURN QUERY SELECT unnest(ids);
    RETURN;
  END IF;
  -- Some dedupe keys were taken: the single form names the job that has each, or makes one if that has just ended.
  FOR bad IN
    SELECT u.id, e.* FROM unnest(ids) WITH ORDINALITY u (id, nth)
    JOIN ROWS FROM (jsonb_to_recordset(jobs) AS (kind text, payload jsonb, dedupe_key text, run_at timestamptz,
                                                 priority integer, traceparent text))
         WITH ORDINALITY AS e (kind, payload, dedupe_key, run_at, priority, traceparent, ord) ON e.ord = u.nth
    ORDER BY u.nth
  LOOP
    IF EXISTS (SELECT FROM reeve.jobs j WHERE j.id = bad.id) THEN
      RETURN NEXT bad.id;
    ELSE
      k := reeve.require_kind(bad.kind, '{}', t);
      RETURN NEXT reeve.insert_job(t, k, coalesce(bad.payload, '{}'), bad.dedupe_key, bad.run_at, bad.priority, bad.traceparent);
    END IF;
  END LOOP;
END $$;
GRANT EXECUTE ON FUNCTION reeve.enqueue_many(jsonb, text) TO reeve_app;

-- The tenants with ready jobs, in byte order, from one cursor to another: a skip scan over jobs_ready. The far end is
-- asked of each tenant found and not of the rows: as a filter it would read every row of the tenants beyond it.
CREATE FUNCTION reeve.ring(q text, r text, after text, upto text, n integer) RETURNS text[] LANGUAGE sql STABLE
  SET search_path = pg_catalog, pg_temp AS $$
  WITH RECURSIVE ring (t) AS (
    (SELECT j.tenant_id FROM reeve.jobs j
     WHERE j.queue = q AND j.region = r AND j.state = 'available' AND j.tenant_id > after
     ORDER BY j.tenant_id LIMIT 1)
    UNION ALL
    SELECT (SELECT j.tenant_id FROM reeve.jobs j
            WHERE j.queue = q AND j.region = r AND j.state = 'available' AND j.tenant_id > ring.t
            ORDER BY j.tenant_id LIMIT 1)
    FROM ring WHERE ring.t IS NOT NULL AND (upto IS NULL OR ring.t < upto))
  SELECT coalesce(array_agg(t), '{}')
  FROM (SELECT t FROM ring WHERE t IS NOT NULL AND (upto IS NULL OR t <= upto) LIMIT n) s
$$;

-- Claims up to `n` jobs fairly. Up to n tenants with ready jobs are gathered from the cursor onwards, around the ring;
-- then places are dealt in rounds, one to each tenant (as many as its weight) a round, until there are none left. The
-- next call begins behind the last tenant served, so whoever a cut round left out comes first. All places go to whoever
-- has work. The attempt is counted here, so that a job that kills its worker is bounded.
-- Returns the jobs, then one row with id NULL: its tenant_id is the cursor for the caller's next call, its attempt 1 when
-- tenants are left that were not looked at.
CREATE FUNCTION reeve.claim(q text, r text, n integer, w text, cur text, lease_secs double precision)
  RETURNS TABLE (id uuid, tenant_id text, kind text, payload jsonb, attempt integer, attempts_max integer,
                 rescues integer, traceparent text, lease_token uuid)
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
  token uuid := gen_random_uuid();
  looked text[];
  mine text[];
  chosen uuid[];
  last_served text;
  quantum integer;
  places integer := n;
  pos text := cur;
  wrapped boolean := false;
  all_seen boolean := false;
BEGIN
  FOR lap IN 1..8 LOOP
    looked := reeve.ring(q, r, pos, CASE WHEN wrapped THEN cur END, places);
    IF cardinality(looked) < places AND NOT wrapped THEN
      wrapped := true;
      looked := looked || reeve.ring(q, r, '', cur, places - cardinality(looked));
    END IF;
    all_seen := wrapped AND cardinality(looked) < places;
    EXIT WHEN cardinality(looked) = 0;
    -- Past every tenant that was looked at, not only those served: a hundred capped ones must not be a wall.
    pos := looked[cardinality(looked)];
    -- A statement of its own: the next one takes a fresh snapshot, and so counts the leases of whoever had the lock.
    SELECT array_agg(u.t ORDER BY u.o) INTO mine FROM unnest(looked) WITH ORDINALITY u (t, o)
    WHERE pg_try_advisory_xact_lock(7262, hashtext(q || '/' || u.t));
    IF mine IS NOT NULL THEN
      quantum := ceil(places::numeric / cardinality(mine));
      SELECT array_agg(c.id), (array_agg(c.t ORDER BY c.round DESC, c.o DESC))[1] INTO chosen, last_served
      FROM (
        SELECT x.id, u.t, u.o, (x.nth + tn.weight - 1) / tn.weight AS round
        FROM unnest(mine) WITH ORDINALITY u (t, o)
        JOIN reeve.tenants tn ON tn.id = u.t AND NOT tn.paused AND tn.state <> 'closed'
          -- Where every kind of this queue is off, not one row is looked at, however many wait.
          AND (tn.kinds_off IS NULL OR EXISTS (SELECT FROM reeve.kinds k WHERE k.queue = q AND k.name <> ALL (tn.kinds_off)))
        CROSS JOIN LATERAL (
          SELECT CASE WHEN tn.running_max IS NULL THEN 2147483647 ELSE tn.running_max - (
            SELECT count(*)::integer FROM (SELECT 1 FROM reeve.jobs y WHERE y.queue = q AND y.region = r
              AND y.tenant_id = u.t AND y.state = 'running' LIMIT tn.running_max) z) END AS free) cap
        CROSS JOIN LATERAL (
          SELECT z.id, row_number() OVER () AS nth FROM (
            SELECT y.id FROM reeve.jobs y
            WHERE y.queue = q AND y.region = r AND y.tenant_id = u.t AND y.state = 'available'
              AND (tn.state = 'active' OR y.kind IN (SELECT k.name FROM reeve.kinds k WHERE k.runs_when_closing))
              AND (tn.kinds_off IS NULL OR y.kind <> ALL (tn.kinds_off))
            ORDER BY y.priority, y.run_at, y.id
            LIMIT greatest(0, least(quantum::bigint * tn.weight, cap.free, places)) FOR UPDATE SKIP LOCKED) z) x
        ORDER BY round, u.o LIMIT places) c;
      IF chosen IS NOT NULL THEN
        RETURN QUERY
        UPDATE reeve.jobs j SET state = 'running', attempt = j.attempt + 1, lease_token = token, worker = w,
               -- A job that lost a lease before says itself when it starts (reeve.mark_started); see reeve.rescue.
               attempted_at = CASE WHEN j.rescues = 0 THEN now() END,
               lease_expires_at = now() + make_interval(secs => lease_secs)
        -- = ANY (array), not a join: under a generic plan a join with LIMIT $1 hashes the whole table.
        WHERE j.id = ANY (chosen)
        RETURNING j.id, j.tenant_id, j.kind, j.payload, j.attempt, j.attempts_max, j.rescues, j.traceparent::text,
                  j.lease_token;
        places := places - cardinality(chosen);
        IF places <= 0 THEN
          pos := last_served;
          EXIT;
        END IF;
      END IF;
    END IF;
    EXIT WHEN all_seen;
  END LOOP;
  RETURN QUERY SELECT NULL::uuid, pos, NULL::text, NULL::jsonb, CASE WHEN all_seen THEN 0 ELSE 1 END, NULL::integer,
                      NULL::integer, NULL::text, NULL::uuid;
END $$;
GRANT EXECUTE ON FUNCTION reeve.claim(text, text, integer, text, text, double precision) TO reeve_worker;

-- A job that lost a lease before is about to start. False when its lease is gone: then it must not.
CREATE FUNCTION reeve.mark_started(job uuid, token uuid) RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  UPDATE reeve.jobs j SET attempted_at = now() WHERE j.id = job AND j.lease_token = token;
  RETURN FOUND;
END $$;
GRANT EXECUTE ON FUNCTION reeve.mark_started(uuid, uuid) TO reeve_worker;

-- "I have nothing to do: ring when something comes." Not worth an fsync: polling is the truth.
CREATE FUNCTION reeve.wait_for_jobs(q text, r text, secs double precision) RETURNS boolean LANGUAGE plpgsql
  SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM set_config('synchronous_commit', 'off', true);
  INSERT INTO reeve.doorbells AS d (queue, region, waiting_until) VALUES (q, r, now() + make_interval(secs => secs))
  ON CONFLICT (queue, region) DO UPDATE SET waiting_until = excluded.waiting_until
  WHERE d.waiting_until < now() + make_interval(secs => secs / 2);
  RETURN FOUND;
END $$;
GRANT EXECUTE ON FUNCTION reeve.wait_for_jobs(text, text, double precision) TO reeve_worker;

-- "I am awake": enqueuers need not ring until somebody waits again.
CREATE FUNCTION reeve.stop_waiting(q text, r text) RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM set_config('synchronous_commit', 'off', true);
  UPDATE reeve.doorbells d SET waiting_until = '-infinity' WHERE d.queue = q AND d.region = r AND d.waiting_until > now();
  RETURN FOUND;
END $$;
GRANT EXECUTE ON FUNCTION reeve.stop_waiting(text, text) TO reeve_worker;

-- Extends the leases that are still held by these tokens. A job that is missing in the answer was taken away.
CREATE FUNCTION reeve.renew(ids uuid[], tokens uuid[], lease_secs double precision)
  RETURNS TABLE (id uuid, cancel_reason text) LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
  UPDATE reeve.jobs j SET lease_expires_at = clock_timestamp() + make_interval(secs => lease_secs)
  FROM unnest(ids, tokens) AS h (id, token)
  WHERE j.id = h.id AND j.lease_token = h.token
  RETURNING j.id, j.cancel_reason
$$;
GRANT EXECUTE ON FUNCTION reeve.renew(uuid[], uuid[], double precision) TO reeve_worker;

-- Settles a batch, each job fenced by its lease token. Returns the ids that were settled: a missing one had lost its
-- lease, and its outcome is not recorded.
-- Outcomes: completed, cancelled; retry (after delay_secs, or dead when attempts are used up); snooze (later, uncounted);
-- release (at once, uncounted); dead; quarantine (audited here, in the same transaction).
CREATE FUNCTION reeve.settle(ids uuid[], tokens uuid[], outcomes text[], delays double precision[], errors text[])
  RETURNS TABLE (settled uuid) LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
  WITH s AS (
    SELECT * FROM unnest(ids, tokens, outcomes, delays, errors) AS s (id, token, outcome, delay_secs, error)),
  over AS (
    DELETE FROM reeve.jobs j USING s
    WHERE j.id = s.id AND j.lease_token = s.token
      AND (s.outcome IN ('completed', 'cancelled') OR (j.cancel_reason IS NOT NULL AND s.outcome IN ('retry', 'snooze', 'release')))
    RETURNING j.id, j.tenant_id, j.kind, j.queue, j.region, j.priority, j.attempt, j.attempts_max, j.rescues, j.run_at,
              j.created_at, j.attempted_at, j.worker, j.unique_key, j.traceparent, j.payload,
              CASE s.outcome WHEN 'completed' THEN 'completed' ELSE 'cancelled' END AS state,
              coalesce(s.error, j.cancel_reason) AS error),
  history AS (
    INSERT INTO reeve.job_history (id, tenant_id, kind, queue, region, state, priority, attempt, attempts_max, rescues,
                                   run_at, created_at, attempted_at, worker, unique_key, traceparent, payload, last_error)
    SELECT o.id, o.tenant_id, o.kind, o.queue, o.region, o.state, o.priority, o.attempt, o.attempts_max, o.rescues,
           o.run_at, o.created_at, o.attempted_at, o.worker, o.unique_key, o.traceparent, o.payload, o.error
    FROM over o),
  kept AS (
    UPDATE reeve.jobs j
    SET state = CASE s.outcome
                  WHEN 'retry' THEN CASE WHEN j.attempt >= j.attempts_max THEN 'dead'
                                         WHEN s.delay_secs > 0 THEN 'retryable' ELSE 'available' END
                  WHEN 'snooze' THEN 'scheduled' WHEN 'release' THEN 'available'
                  -- No ELSE: an unknown word leaves no state, which the table refuses.
                  WHEN 'dead' THEN 'dead' WHEN 'quarantine' THEN 'quarantined' END,
        rescues = CASE WHEN s.outcome = 'release' THEN j.rescues ELSE 0 END,
        attempt = j.attempt - CASE WHEN s.outcome IN ('snooze', 'release') THEN 1 ELSE 0 END,
        run_at = CASE WHEN s.outcome IN ('retry', 'snooze') THEN now() + make_interval(secs => s.delay_secs) ELSE j.run_at END,
        lease_token = NULL, lease_expires_at = NULL,
        last_error = coalesce(s.error, j.last_error)
    FROM s
    WHERE j.id = s.id AND j.lease_token = s.token AND s.outcome NOT IN ('completed', 'cancelled')
      AND NOT (j.cancel_reason IS NOT NULL AND s.outcome IN ('retry', 'snooze', 'release'))
    RETURNING j.id, j.tenant_id, j.state, s.outcome, j.attempt, j.worker, j.attempted_at, s.error),
  attempts AS (
    INSERT INTO reeve.job_attempts (tenant_id, job_id, attempt, outcome, worker, started_at, error)
    SELECT k.tenant_id, k.id, k.attempt + CASE k.outcome WHEN 'snooze' THEN 1 ELSE 0 END,
           CASE k.state WHEN 'dead' THEN 'dead' ELSE k.outcome END, k.worker, k.attempted_at, k.error
    FROM kept k WHERE k.outcome <> 'release'),
  -- No row when nothing is quarantined, and then nothing is called. The ids below come from here, so that it is run.
  audited AS MATERIALIZED (
    SELECT array_agg(k.id) AS ids, reeve.audit_append_many(array_agg(ROW(
      k.tenant_id, 'worker', 'job.quarantined', 'job:' || k.id, k.error, '{}', k.id, k.attempt, NULL, NULL)::reeve.audit_entry
      ORDER BY k.id)) AS entries
    FROM kept k WHERE k.state = 'quarantined' HAVING count(*) > 0)
  SELECT o.id FROM over o UNION ALL SELECT k.id FROM kept k WHERE k.state <> 'quarantined'
  UNION ALL SELECT unnest(a.ids) FROM audited a WHERE a.entries > 0
$$;
GRANT EXECUTE ON FUNCTION reeve.settle(uuid[], uuid[], text[], double precision[], text[]) TO reeve_worker;

RESET ROLE;
