-- What is called all the time keeps its plans: planned once a session, and not once a call. A function in SQL is planned at
-- each call, and so are statements in PL/pgSQL whose arrays the planner likes to see. That cost a claim of an idle queue
-- 0.5 ms of 0.7, and the settlement of a few jobs eight ninths of its time.
--
-- A plan that is kept may be older than the rows. Made while the queue was empty it would read the whole table, and go on
-- doing so, with a million rows in it, until somebody runs ANALYZE. So these functions know one way of reading, by an
-- index, row by row; suite `plans` makes the plans first and the rows afterwards. Compiling (jit) costs more than it saves.
--
-- And one more end of an attempt: `interrupted` is a release of what had started. It is kept on record, since what the
-- attempt had done may be done again.
SET LOCAL ROLE reeve_owner;
ALTER TABLE reeve.job_attempts DROP CONSTRAINT job_attempts_outcome_check;
ALTER TABLE reeve.job_attempts ADD CONSTRAINT job_attempts_outcome_check
  CHECK (outcome IN ('retry', 'snooze', 'interrupted', 'dead', 'quarantine', 'lease_expired'));

SET LOCAL ROLE reeve_dispatch;

-- The tenants with ready jobs, in byte order, from one cursor to another: a skip scan over jobs_ready. The far end is
-- asked of each tenant found and not of the rows: as a filter it would read every row of the tenants beyond it.
CREATE OR REPLACE FUNCTION reeve.ring(q text, r text, after text, upto text, n integer) RETURNS text[] LANGUAGE plpgsql
  STABLE SET search_path = pg_catalog, pg_temp
  SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off
  SET enable_mergejoin = off SET jit = off AS $$
BEGIN
  RETURN (
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
  FROM (SELECT t FROM ring WHERE t IS NOT NULL AND (upto IS NULL OR t <= upto) LIMIT n) s);
END $$;

-- STABLE, as what it calls is: only so is it put into the statement that uses it, and not called for each job.
CREATE OR REPLACE FUNCTION reeve.context_mac(inner_pad bytea, outer_pad bytea, head text, tenant text) RETURNS text
  LANGUAGE sql STABLE PARALLEL SAFE
  RETURN encode(sha256(outer_pad || sha256(inner_pad || convert_to('reeve/context/v1/' || head || '/' || tenant, 'UTF8'))), 'hex');

-- Marks the chosen jobs as this lease's, and gives each its context; in the order in which they were chosen.
CREATE OR REPLACE FUNCTION reeve.take(chosen uuid[], token uuid, w text, lease_secs double precision)
  RETURNS TABLE (id uuid, tenant_id text, kind text, payload jsonb, attempt integer, attempts_max integer,
                 rescues integer, traceparent text, lease_token uuid, context text, urgent boolean)
  LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
  SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off
  SET enable_mergejoin = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
  key reeve.context_keys;
BEGIN
  -- None where contexts are not verified.
  IF (SELECT s.context_verified FROM reeve.settings s) THEN
    SELECT * INTO key FROM reeve.context_keys x ORDER BY x.kid DESC LIMIT 1;
  END IF;
  RETURN QUERY
  WITH taken AS (
    UPDATE reeve.jobs j SET state = 'running', attempt = j.attempt + 1, lease_token = token, worker = w,
           -- A job that lost a lease before says itself when it starts (reeve.mark_started); see reeve.rescue.
           attempted_at = CASE WHEN j.rescues = 0 THEN now() END,
           lease_expires_at = now() + make_interval(secs => lease_secs)
    FROM unnest(chosen) WITH ORDINALITY c (id, nth)
    WHERE j.id = c.id
    RETURNING j.id, j.tenant_id, j.kind, j.payload, j.attempt, j.attempts_max, j.rescues, j.traceparent, j.priority, c.nth)
  SELECT j.id, j.tenant_id, j.kind, j.payload, j.attempt, j.attempts_max, j.rescues, j.traceparent::text, token,
         CASE WHEN key.kid IS NULL THEN '' ELSE
           concat_ws('/', h.head, reeve.context_mac(key.inner_pad, key.outer_pad, h.head, j.tenant_id),
                     CASE WHEN p.tenant_id IS NOT NULL THEN reeve.context_mac(p.inner_pad, p.outer_pad, h.head, j.tenant_id) END) END,
         j.priority = 0
  FROM taken j LEFT JOIN reeve.kinds k ON k.name = j.kind LEFT JOIN reeve.placement_keys p ON p.tenant_id = j.tenant_id
  -- A context lives as long as an attempt may run, and five minutes in the buffer before it.
  CROSS JOIN LATERAL (SELECT reeve.context_head('j', j.id, token,
    extract(epoch FROM now())::bigint + 300 + coalesce(k.budget_secs, 0), key.kid) AS head) h
  ORDER BY j.nth;
END $$;

-- Claims up to `n` jobs fairly. Up to n tenants with ready jobs are gathered from the cursor onwards, around the ring;
-- then places are dealt in rounds, one to each tenant (as many as its weight) a round, until there are none left. The
-- next call begins behind the last tenant served, so whoever a cut round left out comes first. All places go to whoever
-- has work. Before that come jobs of kinds with a deadline. The attempt is counted here, so that a job that kills its
-- worker is bounded.
-- Returns the jobs, then one row with id NULL: its tenant_id is the cursor for the caller's next call, its attempt 1 when
-- tenants are left that were not looked at.
CREATE OR REPLACE FUNCTION reeve.claim(q text, r text, n integer, w text, cur text, lease_secs double precision)
  RETURNS TABLE (id uuid, tenant_id text, kind text, payload jsonb, attempt integer, attempts_max integer,
                 rescues integer, traceparent text, lease_token uuid, context text, urgent boolean)
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
  SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off
  SET enable_mergejoin = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
  token uuid := gen_random_uuid();
  looked text[];
  mine text[];
  chosen uuid[];
  last_served text;
  rated boolean;
  -- Somebody had all that its share allowed, and may have more.
  more_there boolean;
  again boolean := false;
  quantum integer;
  places integer := n;
  pos text := cur;
  wrapped boolean := false;
  all_seen boolean := false;
  -- Kinds of this queue that are paused; NULL when none is.
  paused_kinds text[];
  -- Of this queue, and not paused.
  open_kinds text[];
  closing_kinds text[];
  has_deadlines boolean;
BEGIN
  SELECT array_agg(k.name) FILTER (WHERE k.paused AND k.queue = q), array_agg(k.name) FILTER (WHERE NOT k.paused AND k.queue = q),
         array_agg(k.name) FILTER (WHERE k.runs_when_closing), bool_or(k.deadline_secs IS NOT NULL AND k.queue = q)
  INTO paused_kinds, open_kinds, closing_kinds, has_deadlines FROM reeve.kinds k;
  IF (paused_kinds IS NOT NULL AND open_kinds IS NULL) OR EXISTS (SELECT FROM reeve.paused_queues p WHERE p.queue = q) THEN
    RETURN QUERY SELECT NULL::uuid, cur, NULL::text, NULL::jsonb, 0, NULL::integer, NULL::integer, NULL::text, NULL::uuid,
                        NULL::text, NULL::boolean;
    RETURN;
  END IF;
  IF has_deadlines THEN
    -- Of the thousand that are due longest; their kinds' deadlines may differ.
    chosen := ARRAY(
      SELECT y.id FROM reeve.jobs y
      JOIN (SELECT x.id, x.run_at + make_interval(secs => coalesce(k.deadline_secs, 0)) AS deadline_at
            FROM reeve.jobs x JOIN reeve.tenants tn ON tn.id = x.tenant_id LEFT JOIN reeve.kinds k ON k.name = x.kind
            WHERE x.queue = q AND x.region = r AND x.state = 'available' AND x.priority = 0
              AND NOT tn.paused AND NOT tn.moving AND tn.state <> 'closed'
              AND (tn.state = 'active' OR k.runs_when_closing)
              AND x.kind <> ALL (coalesce(tn.kinds_off, '{}') || coalesce(paused_kinds, '{}'))
            ORDER BY x.run_at, x.id LIMIT 1000) d ON d.id = y.id
      WHERE y.state = 'available'
      ORDER BY d.deadline_at, y.id LIMIT places FOR UPDATE OF y SKIP LOCKED);
    IF cardinality(chosen) > 0 THEN
      RETURN QUERY SELECT * FROM reeve.take(chosen, token, w, lease_secs);
      places := places - cardinality(chosen);
    END IF;
  END IF;
  FOR lap IN 1..8 LOOP
    EXIT WHEN places <= 0;
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
      quantum := CASE WHEN again THEN places ELSE ceil(places::numeric / cardinality(mine)) END;
      SELECT array_agg(c.id), (array_agg(c.t ORDER BY c.round DESC, c.o DESC))[1], bool_or(c.starts_per_min IS NOT NULL),
             bool_or(c.nth = quantum::bigint * c.weight)
      INTO chosen, last_served, rated, more_there
      FROM (
        SELECT x.id, x.nth, u.t, u.o, tn.starts_per_min, tn.weight, (x.nth + tn.weight - 1) / tn.weight AS round
        FROM unnest(mine) WITH ORDINALITY u (t, o)
        JOIN reeve.tenants tn ON tn.id = u.t AND NOT tn.paused AND NOT tn.moving AND tn.state <> 'closed'
          -- Where every kind of this queue is off, not one row is looked at, however many wait.
          AND (tn.kinds_off IS NULL OR NOT open_kinds <@ tn.kinds_off)
        CROSS JOIN LATERAL (
          SELECT CASE WHEN most.n IS NULL THEN 2147483647 ELSE most.n - (
            SELECT count(*)::integer FROM (SELECT 1 FROM reeve.jobs y WHERE y.queue = q AND y.region = r
              AND y.tenant_id = u.t AND y.state = 'running' LIMIT most.n) z) END AS free
          FROM (SELECT coalesce(tn.running_max, tn.running_max_by_flag) AS n) most) cap
        LEFT JOIN reeve.starts_ahead ahead ON ahead.tenant_id = u.t AND ahead.queue = q AND tn.starts_per_min IS NOT NULL
        CROSS JOIN LATERAL (
          SELECT z.id, row_number() OVER () AS nth FROM (
            SELECT y.id FROM reeve.jobs y
            WHERE y.queue = q AND y.region = r AND y.tenant_id = u.t AND y.state = 'available'
              AND (tn.state = 'active' OR y.kind = ANY (closing_kinds))
              AND (tn.kinds_off IS NULL OR y.kind <> ALL (tn.kinds_off))
              AND (paused_kinds IS NULL OR y.kind <> ALL (paused_kinds))
            ORDER BY y.priority, y.run_at, y.id
            LIMIT greatest(0, least(quantum::bigint * tn.weight, cap.free,
                                    reeve.starts_free(tn.starts_per_min, ahead.due_at), places)) FOR UPDATE SKIP LOCKED) z) x
        ORDER BY round, u.o LIMIT places) c;
      IF chosen IS NOT NULL THEN
        RETURN QUERY SELECT * FROM reeve.take(chosen, token, w, lease_secs);
        IF rated THEN
          INSERT INTO reeve.starts_ahead AS s (tenant_id, queue, due_at)
          SELECT tn.id, q, now() + count(*) * interval '1 min' / tn.starts_per_min
          FROM reeve.jobs j JOIN reeve.tenants tn ON tn.id = j.tenant_id AND tn.starts_per_min IS NOT NULL
          WHERE j.id = ANY (chosen) GROUP BY tn.id, tn.starts_per_min
          ON CONFLICT ON CONSTRAINT starts_ahead_pkey
          DO UPDATE SET due_at = greatest(s.due_at, now()) + (excluded.due_at - now());
        END IF;
        places := places - cardinality(chosen);
        IF places <= 0 THEN
          pos := last_served;
          EXIT;
        END IF;
      END IF;
    END IF;
    IF all_seen THEN
      EXIT WHEN more_there IS NOT TRUE;
      -- Capped tenants left places over: whoever has more takes them, in another round from the start.
      pos := cur;
      wrapped := false;
      again := true;
    END IF;
    more_there := false;
  END LOOP;
  RETURN QUERY SELECT NULL::uuid, pos, NULL::text, NULL::jsonb, CASE WHEN all_seen THEN 0 ELSE 1 END, NULL::integer,
                      NULL::integer, NULL::text, NULL::uuid, NULL::text, NULL::boolean;
END $$;

-- Extends the leases that are still held by these tokens. A job that is missing in the answer was taken away.
CREATE OR REPLACE FUNCTION reeve.renew(ids uuid[], tokens uuid[], lease_secs double precision)
  RETURNS TABLE (id uuid, cancel_reason text) LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = pg_catalog, pg_temp
  SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off
  SET enable_mergejoin = off SET jit = off AS $$
#variable_conflict use_column
BEGIN
  RETURN QUERY
  UPDATE reeve.jobs j SET lease_expires_at = clock_timestamp() + make_interval(secs => lease_secs)
  FROM unnest(ids, tokens) AS h (id, token)
  WHERE j.id = h.id AND j.lease_token = h.token
  RETURNING j.id, j.cancel_reason;
END $$;

-- One look of reeve.settle (0026_settle_beside_cancel.sql). Settles a batch, each job fenced by its lease token. Returns
-- the ids that were settled: a missing one had lost its lease, and its outcome is not recorded.
-- Outcomes: completed, cancelled; retry (after delay_secs, or dead when attempts are used up); snooze (later, uncounted);
-- release and interrupted (at once, uncounted); dead; quarantine (audited here, in the same transaction).
CREATE OR REPLACE FUNCTION reeve.settle_once(ids uuid[], tokens uuid[], outcomes text[], delays double precision[],
                                             errors text[])
  RETURNS TABLE (settled uuid) LANGUAGE plpgsql
  SET search_path = pg_catalog, pg_temp
  SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off
  SET enable_mergejoin = off SET jit = off AS $$
#variable_conflict use_column
BEGIN
  RETURN QUERY
  WITH s AS (
    SELECT * FROM unnest(ids, tokens, outcomes, delays, errors) AS s (id, token, outcome, delay_secs, error)),
  over AS (
    DELETE FROM reeve.jobs j USING s
    WHERE j.id = s.id AND j.lease_token = s.token
      AND (s.outcome IN ('completed', 'cancelled') OR (j.cancel_reason IS NOT NULL AND s.outcome IN ('retry', 'snooze', 'release', 'interrupted')))
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
                  WHEN 'snooze' THEN 'scheduled' WHEN 'release' THEN 'available' WHEN 'interrupted' THEN 'available'
                  -- No ELSE: an unknown word leaves no state, which the table refuses.
                  WHEN 'dead' THEN 'dead' WHEN 'quarantine' THEN 'quarantined' END,
        rescues = CASE WHEN s.outcome IN ('release', 'interrupted') THEN j.rescues ELSE 0 END,
        attempt = j.attempt - CASE WHEN s.outcome IN ('snooze', 'release', 'interrupted') THEN 1 ELSE 0 END,
        run_at = CASE WHEN s.outcome IN ('retry', 'snooze') THEN now() + make_interval(secs => s.delay_secs) ELSE j.run_at END,
        lease_token = NULL, lease_expires_at = NULL,
        last_error = coalesce(s.error, j.last_error)
    FROM s
    WHERE j.id = s.id AND j.lease_token = s.token AND s.outcome NOT IN ('completed', 'cancelled')
      AND NOT (j.cancel_reason IS NOT NULL AND s.outcome IN ('retry', 'snooze', 'release', 'interrupted'))
    RETURNING j.id, j.tenant_id, j.state, s.outcome, j.attempt, j.worker, j.attempted_at, s.error),
  attempts AS (
    INSERT INTO reeve.job_attempts (tenant_id, job_id, attempt, outcome, worker, started_at, error)
    SELECT k.tenant_id, k.id, k.attempt + CASE WHEN k.outcome IN ('snooze', 'interrupted') THEN 1 ELSE 0 END,
           CASE k.state WHEN 'dead' THEN 'dead' ELSE k.outcome END, k.worker, k.attempted_at, k.error
    FROM kept k WHERE k.outcome <> 'release'),
  -- No row when nothing is quarantined, and then nothing is called. The ids below come from here, so that it is run.
  audited AS MATERIALIZED (
    SELECT array_agg(k.id) AS ids, reeve.audit_append_many(array_agg(ROW(
      k.tenant_id, 'worker', 'job.quarantined', 'job:' || k.id, k.error, '{}', k.id, k.attempt, NULL, NULL)::reeve.audit_entry
      ORDER BY k.id)) AS entries
    FROM kept k WHERE k.state = 'quarantined' HAVING count(*) > 0)
  SELECT o.id FROM over o UNION ALL SELECT k.id FROM kept k WHERE k.state <> 'quarantined'
  UNION ALL SELECT unnest(a.ids) FROM audited a WHERE a.entries > 0;
END $$;

ALTER FUNCTION reeve.report_progress(uuid[], uuid[], text[], bigint[], bigint[], uuid[], uuid[])
  SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off
  SET enable_mergejoin = off SET jit = off;
-- This one has lists to join, which want a hash.
ALTER FUNCTION reeve.take_up(text, text, uuid[], integer, text, double precision)
  SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off;

-- Enqueues in the caller's transaction. Returns the job's id; with a dedupe_key that a live job of this tenant and
-- kind has, that job's id. `tenant_id` may only confirm the context.
--   RV001 no context   RV002 another tenant   RV003 tenant unknown   RV004 kind unknown   RV005 bad argument
--   RV006 tenant closing or closed
CREATE OR REPLACE FUNCTION reeve.enqueue(kind text, payload jsonb DEFAULT '{}', dedupe_key text DEFAULT NULL,
                                         run_at timestamptz DEFAULT NULL, priority integer DEFAULT NULL,
                                         traceparent text DEFAULT NULL, tenant_id text DEFAULT NULL) RETURNS uuid
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  -- The usual case without a join: to set one up costs an app's transaction more than four looks by key.
  setting text := (SELECT s.app_context_setting FROM reeve.settings s);
  app text := CASE WHEN setting IS NOT NULL THEN nullif(current_setting(setting, true), '') END;
  own text := coalesce(nullif(current_setting('reeve.tenant_id', true), ''), app);
  due timestamptz := coalesce(run_at, now());
  usual boolean;
  t record;
  k record;
  job uuid;
BEGIN
  SELECT x.region, x.state INTO t FROM reeve.tenants x WHERE x.id = own;
  SELECT x.queue, x.priority, x.attempts_max, x.payload_bytes_max, x.app_may_enqueue INTO k
  FROM reeve.kinds x WHERE x.name = enqueue.kind;
  usual := t.state = 'active' AND k.app_may_enqueue AND coalesce(app, own) = own AND coalesce(enqueue.tenant_id, own) = own
           AND enqueue.dedupe_key IS NULL AND octet_length(enqueue.payload::text) <= k.payload_bytes_max
           AND jsonb_typeof(enqueue.payload) = 'object' AND coalesce(enqueue.priority, 1) BETWEEN 1 AND 4
           AND coalesce(length(enqueue.traceparent), 0) <= 64
           AND due BETWEEN '2000-01-01' AND now() + interval '10 years';
  -- Whatever is unusual goes step by step, which says what is wrong.
  IF usual IS NOT TRUE THEN
    RETURN reeve.enqueue_carefully(kind, payload, dedupe_key, run_at, priority, traceparent, tenant_id);
  END IF;
  INSERT INTO reeve.jobs (id, tenant_id, kind, queue, region, state, priority, attempts_max, run_at, traceparent, payload)
  VALUES (reeve.new_id(), own, enqueue.kind, k.queue, t.region,
          CASE WHEN due > now() THEN 'scheduled' ELSE 'available' END, coalesce(enqueue.priority, k.priority),
          k.attempts_max, due, enqueue.traceparent, enqueue.payload)
  RETURNING id INTO job;
  IF due <= now() AND (SELECT d.waiting_until > now() FROM reeve.doorbells d WHERE d.queue = k.queue AND d.region = t.region) THEN
    PERFORM pg_notify('reeve_jobs', k.queue || '@' || t.region);
  END IF;
  RETURN job;
END $$;

RESET ROLE;
