-- The claim, and all that decides who waits: pauses of queues, kinds and tenants, caps on what runs and on how fast it starts,
-- and deadlines. `reeve.why` tells an operator which of them a job waits for.
--
-- What a claim heeds, in its order: the queue's pause; jobs of kinds with a deadline, earliest first, of all tenants
-- together; then the ring of tenants, each with its share. Live leases are counted afresh each time, so no counter can leak.
-- A rate is kept as one moment per tenant and queue, which time itself brings back.
SET LOCAL ROLE reeve_owner;

-- Priority 0 is for kinds with a deadline, and nobody chooses it for a single job: those come first, earliest deadline
-- first, whoever's they are, and no cap holds them up. The deadline is run_at and these seconds.
ALTER TABLE reeve.kinds ADD COLUMN deadline_secs integer CHECK (deadline_secs BETWEEN 1 AND 31622400);
ALTER TABLE reeve.kinds DROP CONSTRAINT kinds_priority_check;
ALTER TABLE reeve.kinds ADD CONSTRAINT kinds_priority_check
  CHECK (CASE WHEN deadline_secs IS NULL THEN priority BETWEEN 1 AND 4 ELSE priority = 0 END);
ALTER TABLE reeve.kinds ADD COLUMN paused boolean NOT NULL DEFAULT false;

CREATE TABLE reeve.paused_queues (
  queue     text COLLATE "C" PRIMARY KEY,
  paused_at timestamptz NOT NULL DEFAULT now()
);
GRANT SELECT, INSERT, DELETE ON reeve.paused_queues TO reeve_dispatch;
GRANT SELECT ON reeve.paused_queues TO reeve_ops;
GRANT UPDATE (paused) ON reeve.kinds TO reeve_dispatch;

-- Jobs of a tenant that may start in a minute, in one queue; NULL is no cap.
ALTER TABLE reeve.tenants ADD COLUMN starts_per_min integer CHECK (starts_per_min BETWEEN 1 AND 1000000);

-- How far ahead of its rate a tenant is: the moment at which all it started would have been due, evenly spread (GCRA, the
-- leaky bucket of ATM Forum TM 4.0, as one value). Absent, or past: not ahead.
CREATE TABLE reeve.starts_ahead (
  tenant_id text COLLATE "C" NOT NULL,
  queue     text COLLATE "C" NOT NULL,
  due_at    timestamptz NOT NULL,
  PRIMARY KEY (tenant_id, queue)
) WITH (fillfactor = 50);
ALTER TABLE reeve.starts_ahead ENABLE ROW LEVEL SECURITY;
ALTER TABLE reeve.starts_ahead FORCE ROW LEVEL SECURITY;
CREATE POLICY dispatch ON reeve.starts_ahead TO reeve_dispatch USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, UPDATE, DELETE ON reeve.starts_ahead TO reeve_dispatch;

CREATE INDEX jobs_urgent ON reeve.jobs (queue, region, run_at, id) WHERE state = 'available' AND priority = 0;

SET LOCAL ROLE reeve_dispatch;

-- How many jobs a tenant may start now by its rate: five seconds' worth at once, and at least one.
CREATE FUNCTION reeve.starts_free(per_min integer, due_at timestamptz) RETURNS integer LANGUAGE sql STABLE PARALLEL SAFE
  RETURN CASE WHEN per_min IS NULL THEN 2147483647 ELSE
    floor(greatest(ceil(per_min / 12.0), 1)
          - greatest(extract(epoch FROM coalesce(due_at, now()) - now()), 0) * per_min / 60)::integer END;

DROP FUNCTION reeve.claim(text, text, integer, text, text, double precision);
-- Marks the chosen jobs as this lease's, and gives each its context; in the order in which they were chosen.
CREATE FUNCTION reeve.take(chosen uuid[], token uuid, w text, lease_secs double precision)
  RETURNS TABLE (id uuid, tenant_id text, kind text, payload jsonb, attempt integer, attempts_max integer,
                 rescues integer, traceparent text, lease_token uuid, context text, urgent boolean)
  LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
  RETURN QUERY
  WITH taken AS (
    UPDATE reeve.jobs j SET state = 'running', attempt = j.attempt + 1, lease_token = token, worker = w,
           -- A job that lost a lease before says itself when it starts (reeve.mark_started); see reeve.rescue.
           attempted_at = CASE WHEN j.rescues = 0 THEN now() END,
           lease_expires_at = now() + make_interval(secs => lease_secs)
    -- = ANY (array), not a join: under a generic plan a join with LIMIT $1 hashes the whole table.
    WHERE j.id = ANY (chosen)
    RETURNING j.id, j.tenant_id, j.kind, j.payload, j.attempt, j.attempts_max, j.rescues, j.traceparent, j.priority)
  SELECT j.id, j.tenant_id, j.kind, j.payload, j.attempt, j.attempts_max, j.rescues, j.traceparent::text, token,
         CASE WHEN m.kid IS NULL THEN '' ELSE
           concat_ws('/', h.head, reeve.context_mac(m.inner_pad, m.outer_pad, h.head, j.tenant_id),
                     reeve.context_mac(p.inner_pad, p.outer_pad, h.head, j.tenant_id)) END,
         j.priority = 0
  FROM taken j JOIN unnest(chosen) WITH ORDINALITY c (id, nth) ON c.id = j.id LEFT JOIN reeve.kinds k ON k.name = j.kind
  LEFT JOIN reeve.placement_keys p ON p.tenant_id = j.tenant_id
  -- None where contexts are not verified.
  LEFT JOIN (SELECT x.* FROM reeve.context_keys x, reeve.settings s WHERE s.context_verified
             ORDER BY x.kid DESC LIMIT 1) m ON true
  -- A context lives as long as an attempt may run, and five minutes in the buffer before it.
  CROSS JOIN LATERAL (SELECT reeve.context_head('j', j.id, token,
    extract(epoch FROM now())::bigint + 300 + coalesce(k.budget_secs, 0), m.kid) AS head) h
  ORDER BY c.nth;
END $$;

-- Claims up to `n` jobs fairly. Up to n tenants with ready jobs are gathered from the cursor onwards, around the ring;
-- then places are dealt in rounds, one to each tenant (as many as its weight) a round, until there are none left. The
-- next call begins behind the last tenant served, so whoever a cut round left out comes first. All places go to whoever
-- has work. Before that come jobs of kinds with a deadline. The attempt is counted here, so that a job that kills its
-- worker is bounded.
-- Returns the jobs, then one row with id NULL: its tenant_id is the cursor for the caller's next call, its attempt 1 when
-- tenants are left that were not looked at.
CREATE FUNCTION reeve.claim(q text, r text, n integer, w text, cur text, lease_secs double precision)
  RETURNS TABLE (id uuid, tenant_id text, kind text, payload jsonb, attempt integer, attempts_max integer,
                 rescues integer, traceparent text, lease_token uuid, context text, urgent boolean)
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
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
  all_paused boolean;
  has_deadlines boolean;
BEGIN
  SELECT array_agg(k.name) FILTER (WHERE k.paused), bool_and(k.paused), bool_or(k.deadline_secs IS NOT NULL)
  INTO paused_kinds, all_paused, has_deadlines FROM reeve.kinds k WHERE k.queue = q;
  IF all_paused OR EXISTS (SELECT FROM reeve.paused_queues p WHERE p.queue = q) THEN
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
          AND (tn.kinds_off IS NULL OR EXISTS (SELECT FROM reeve.kinds k WHERE k.queue = q AND NOT k.paused
                                               AND k.name <> ALL (tn.kinds_off)))
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
              AND (tn.state = 'active' OR y.kind IN (SELECT k.name FROM reeve.kinds k WHERE k.runs_when_closing))
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
GRANT EXECUTE ON FUNCTION reeve.claim(text, text, integer, text, text, double precision) TO reeve_worker;

-- Why a job waits, for an operator: everything that a claim heeds, as it is now. NULL: no such live job. Counts stop at
-- 10,000 jobs and 1,000 tenants.
CREATE FUNCTION reeve.why(job uuid) RETURNS jsonb LANGUAGE sql STABLE SECURITY DEFINER
  SET search_path = pg_catalog, pg_temp AS $$
  SELECT jsonb_build_object(
    'id', j.id, 'tenant', j.tenant_id, 'kind', j.kind, 'queue', j.queue, 'region', j.region, 'state', j.state,
    'due_at', j.run_at, 'due_in_secs', greatest(extract(epoch FROM j.run_at - now()), 0),
    'deadline_at', j.run_at + make_interval(secs => k.deadline_secs),
    'worker', CASE WHEN j.state = 'running' THEN j.worker END, 'last_error', j.last_error,
    'queue_paused', EXISTS (SELECT FROM reeve.paused_queues p WHERE p.queue = j.queue),
    'kind_paused', coalesce(k.paused, false), 'kind_off', coalesce(j.kind = ANY (t.kinds_off), false),
    'tenant_paused', t.paused, 'tenant_moving', t.moving, 'tenant_state', t.state,
    'runs_when_closing', coalesce(k.runs_when_closing, false),
    'running', (SELECT count(*) FROM reeve.jobs y WHERE y.queue = j.queue AND y.region = j.region
                AND y.tenant_id = j.tenant_id AND y.state = 'running'),
    'running_max', coalesce(t.running_max, t.running_max_by_flag),
    'starts_per_min', t.starts_per_min, 'starts_free', CASE WHEN t.starts_per_min IS NOT NULL THEN
      reeve.starts_free(t.starts_per_min, (SELECT s.due_at FROM reeve.starts_ahead s
                                           WHERE s.tenant_id = j.tenant_id AND s.queue = j.queue)) END,
    'weight', t.weight,
    'own_ahead', CASE WHEN j.state = 'available' THEN (SELECT count(*) FROM (
      SELECT FROM reeve.jobs y WHERE y.queue = j.queue AND y.region = j.region AND y.tenant_id = j.tenant_id
        AND y.state = 'available' AND (y.priority, y.run_at, y.id) < (j.priority, j.run_at, j.id) LIMIT 10000) a) END,
    'tenants_ready', cardinality(reeve.ring(j.queue, j.region, '', NULL, 1000)),
    'workers_idle', EXISTS (SELECT FROM reeve.doorbells d WHERE d.queue = j.queue AND d.region = j.region
                            AND d.waiting_until > now()))
  FROM reeve.jobs j JOIN reeve.tenants t ON t.id = j.tenant_id LEFT JOIN reeve.kinds k ON k.name = j.kind
  WHERE j.id = why.job
$$;
GRANT EXECUTE ON FUNCTION reeve.why(uuid) TO reeve_ops;

-- Pauses and resumes a queue or a kind everywhere. Returns whether that changed anything; only then it is audited.
CREATE FUNCTION reeve.pause_queue(queue text, pause boolean, actor text, reason text) RETURNS boolean
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
BEGIN
  IF NOT EXISTS (SELECT FROM reeve.kinds k WHERE k.queue = pause_queue.queue) THEN
    RAISE EXCEPTION 'reeve: no kind uses a queue "%"', coalesce(queue, 'NULL') USING ERRCODE = 'RV004',
      HINT = 'Queues: ' || (SELECT string_agg(DISTINCT k.queue, ', ') FROM reeve.kinds k);
  END IF;
  IF pause THEN
    INSERT INTO reeve.paused_queues (queue) VALUES (queue) ON CONFLICT DO NOTHING;
  ELSE
    DELETE FROM reeve.paused_queues p WHERE p.queue = pause_queue.queue;
  END IF;
  IF NOT FOUND THEN
    RETURN false;
  END IF;
  PERFORM reeve.ring_lanes(queue);
  PERFORM reeve.audit_append('-', actor, CASE WHEN pause THEN 'queue.paused' ELSE 'queue.resumed' END, 'queue:' || queue,
                             reason, '{}', NULL, NULL, NULL);
  RETURN true;
END $$;

CREATE FUNCTION reeve.pause_kind(kind text, pause boolean, actor text, reason text) RETURNS boolean
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  k reeve.kinds;
BEGIN
  UPDATE reeve.kinds x SET paused = pause WHERE x.name = kind AND x.paused <> pause RETURNING x.* INTO k;
  IF NOT FOUND THEN
    IF EXISTS (SELECT FROM reeve.kinds x WHERE x.name = kind) THEN
      RETURN false;
    END IF;
    RAISE EXCEPTION 'reeve: unknown kind "%"', coalesce(kind, 'NULL') USING ERRCODE = 'RV004',
      HINT = 'Known kinds: ' || (SELECT string_agg(x.name, ', ' ORDER BY x.name) FROM reeve.kinds x);
  END IF;
  PERFORM reeve.ring_lanes(k.queue);
  PERFORM reeve.audit_append('-', actor, CASE WHEN pause THEN 'kind.paused' ELSE 'kind.resumed' END, 'kind:' || kind,
                             reason, '{}', NULL, NULL, NULL);
  RETURN true;
END $$;

-- Wakes the workers that wait for this queue, in every region.
CREATE FUNCTION reeve.ring_lanes(queue text) RETURNS void LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
  SELECT reeve.ring_doorbell(d.queue, d.region) FROM reeve.doorbells d WHERE d.queue = ring_lanes.queue
$$;
GRANT EXECUTE ON FUNCTION reeve.pause_queue(text, boolean, text, text), reeve.pause_kind(text, boolean, text, text) TO reeve_ops;

RESET ROLE;
