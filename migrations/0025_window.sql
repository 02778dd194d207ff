-- The window: ids of ready jobs held out to the workers in Redis, so that most claims need not look for work here. What
-- holds stays as it was: a job is a row of reeve.jobs, and a lease is given here alone.
--   worker     take_up: claims those of some ids that may run now
--   scheduler  window_lanes, window_tenants, window_jobs: what there is to be held out
--
-- An id is a hint and proves nothing. Whose job it is, whether it is ready, and whether it may start are read from the
-- rows, under the rules of reeve.claim (0018_claim.sql); so a stale, repeated or forged id changes nothing.
-- A queue with kinds that have a deadline has no window: whose deadline is next is seen over all tenants, by the claim.
SET LOCAL ROLE reeve_dispatch;

-- Whether a queue's jobs may run at all, and may be looked at tenant by tenant.
CREATE FUNCTION reeve.window_open(q text) RETURNS boolean LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN NOT EXISTS (SELECT FROM reeve.paused_queues p WHERE p.queue = q)
    AND (SELECT NOT bool_and(k.paused) AND NOT bool_or(k.deadline_secs IS NOT NULL) FROM reeve.kinds k WHERE k.queue = q)
        IS NOT FALSE;
END $$;

-- Which of these tenants may start jobs of a lane now, and how many of which kinds: those of kinds_only (NULL: all) that
-- are not of kinds_not. What is counted here is exact only for who holds the tenant's lock, as in reeve.claim; `capped`
-- says for whom that matters. A parsed body, so that it is planned with the statement that uses it.
CREATE FUNCTION reeve.may_start(q text, r text, tenants text[])
  RETURNS TABLE (tenant_id text, weight integer, capped boolean, free integer, starts_per_min integer,
                 kinds_only text[], kinds_not text[])
  LANGUAGE sql STABLE
  BEGIN ATOMIC
  SELECT tn.id, tn.weight, most.n IS NOT NULL OR tn.starts_per_min IS NOT NULL,
         least(cap.free, reeve.starts_free(tn.starts_per_min, ahead.due_at)), tn.starts_per_min,
         CASE WHEN tn.state <> 'active' THEN ARRAY(SELECT k.name FROM reeve.kinds k WHERE k.runs_when_closing) END,
         coalesce(tn.kinds_off, '{}') || ARRAY(SELECT k.name FROM reeve.kinds k WHERE k.queue = q AND k.paused)
  FROM reeve.tenants tn
  CROSS JOIN LATERAL (SELECT coalesce(tn.running_max, tn.running_max_by_flag) AS n) most
  CROSS JOIN LATERAL (
    SELECT CASE WHEN most.n IS NULL THEN 2147483647 ELSE most.n - (
      SELECT count(*)::integer FROM (SELECT 1 FROM reeve.jobs y WHERE y.queue = q AND y.region = r
        AND y.tenant_id = tn.id AND y.state = 'running' LIMIT most.n) z) END AS free) cap
  LEFT JOIN reeve.starts_ahead ahead ON ahead.tenant_id = tn.id AND ahead.queue = q AND tn.starts_per_min IS NOT NULL
  WHERE tn.id = ANY (tenants) AND NOT tn.paused AND NOT tn.moving AND tn.state <> 'closed'
    -- Where every kind of this queue is off, not one row is looked at, however many wait.
    AND (tn.kinds_off IS NULL OR EXISTS (SELECT FROM reeve.kinds k WHERE k.queue = q AND NOT k.paused
                                         AND k.name <> ALL (tn.kinds_off)));
  END;

-- Claims those of the ids that are ready in this lane and may start, at most n, dealt in rounds as by reeve.claim, whatever
-- order they were given in: rows as reeve.claim's, without the last. Nothing is looked for: what is not among the ids is left to others.
-- Plans without sequential scans, since a plan is kept, and may have been made while the table was empty; and so without
-- JIT, which takes the price that forbids such a scan of a small table for work, and compiles for half a second.
-- coalesce(state): so that the primary key is the one index that fits, whatever the statistics say.
CREATE FUNCTION reeve.take_up(q text, r text, ids uuid[], n integer, w text, lease_secs double precision)
  RETURNS TABLE (id uuid, tenant_id text, kind text, payload jsonb, attempt integer, attempts_max integer,
                 rescues integer, traceparent text, lease_token uuid, context text, urgent boolean)
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
  owners text[];
  held text[];
  chosen uuid[];
  rated boolean;
BEGIN
  IF NOT reeve.window_open(q) THEN
    RETURN;
  END IF;
  SELECT array_agg(DISTINCT j.tenant_id) INTO owners FROM reeve.jobs j
  WHERE j.id = ANY (ids) AND j.queue = q AND j.region = r AND coalesce(j.state, '') = 'available';
  IF owners IS NULL THEN
    RETURN;
  END IF;
  -- Only where something is counted. A statement of its own: the next one takes a fresh snapshot, and so counts the
  -- leases of whoever had the lock. Whoever has it now serves the tenant.
  SELECT array_agg(c.tenant_id) INTO held
  -- OFFSET: no lock is tried of a tenant that is not here.
  FROM (SELECT m.tenant_id FROM reeve.may_start(q, r, owners) m WHERE m.capped OFFSET 0) c
  WHERE pg_try_advisory_xact_lock(7262, hashtext(q || '/' || c.tenant_id));
  SELECT array_agg(c.id ORDER BY c.round, c.tenant_id, c.own), bool_or(c.starts_per_min IS NOT NULL) INTO chosen, rated
  FROM (
    SELECT x.id, x.own, g.tenant_id, m.starts_per_min, (x.own + m.weight - 1) / m.weight AS round
    -- By tenant first, so that each tenant's jobs are counted once and not for each of its ids.
    FROM (
      SELECT y.tenant_id, array_agg(y.id ORDER BY y.priority, y.run_at, y.id) AS own_ids,
             array_agg(y.kind ORDER BY y.priority, y.run_at, y.id) AS own_kinds
      FROM (
        SELECT j.id, j.tenant_id, j.kind, j.priority, j.run_at FROM reeve.jobs j
        WHERE j.id = ANY (ids) AND j.queue = q AND j.region = r AND coalesce(j.state, '') = 'available'
        FOR UPDATE SKIP LOCKED) y
      GROUP BY y.tenant_id) g
    CROSS JOIN LATERAL reeve.may_start(q, r, ARRAY[g.tenant_id]) m
    CROSS JOIN LATERAL (
      SELECT z.id, row_number() OVER () AS own FROM (
        SELECT u.id FROM unnest(g.own_ids, g.own_kinds) WITH ORDINALITY u (id, kind, nth)
        WHERE (m.kinds_only IS NULL OR u.kind = ANY (m.kinds_only)) AND u.kind <> ALL (m.kinds_not)
        ORDER BY u.nth LIMIT greatest(0, m.free)) z) x
    WHERE NOT m.capped OR m.tenant_id = ANY (held)
    ORDER BY round, g.tenant_id, x.own LIMIT n) c;
  IF chosen IS NULL THEN
    RETURN;
  END IF;
  RETURN QUERY SELECT * FROM reeve.take(chosen, gen_random_uuid(), w, lease_secs);
  IF rated THEN
    INSERT INTO reeve.starts_ahead AS s (tenant_id, queue, due_at)
    SELECT tn.id, q, now() + count(*) * interval '1 min' / tn.starts_per_min
    FROM reeve.jobs j JOIN reeve.tenants tn ON tn.id = j.tenant_id AND tn.starts_per_min IS NOT NULL
    WHERE j.id = ANY (chosen) GROUP BY tn.id, tn.starts_per_min
    ON CONFLICT ON CONSTRAINT starts_ahead_pkey
    DO UPDATE SET due_at = greatest(s.due_at, now()) + (excluded.due_at - now());
  END IF;
END $$;
GRANT EXECUTE ON FUNCTION reeve.take_up(text, text, uuid[], integer, text, double precision) TO reeve_worker;

-- The lanes that may have a window and have something to put into it.
CREATE FUNCTION reeve.window_lanes() RETURNS TABLE (queue text, region text) LANGUAGE plpgsql STABLE SECURITY DEFINER
  SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
#variable_conflict use_column
BEGIN
  RETURN QUERY
  SELECT k.queue, r.name FROM (SELECT DISTINCT x.queue FROM reeve.kinds x) k CROSS JOIN reeve.regions r
  -- One look into the index for each; as a join it would read all ready jobs.
  CROSS JOIN LATERAL (SELECT FROM reeve.jobs j WHERE j.queue = k.queue AND j.region = r.name AND j.state = 'available'
                      LIMIT 1) ready
  WHERE reeve.window_open(k.queue) ORDER BY 1, 2;
END $$;

-- The tenants with ready jobs of a lane, from a cursor on.
CREATE FUNCTION reeve.window_tenants(q text, r text, after text, n integer) RETURNS text[] LANGUAGE plpgsql STABLE
  SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
BEGIN
  RETURN reeve.ring(q, r, after, NULL, n);
END $$;

-- Up to k ready jobs of each of these tenants, the first to be claimed first, and no more than may start now. The score
-- sorts as the claim does: by priority, then by due time in microseconds since 2020; exact in a double, which Redis keeps it as, until 2055, and ids
-- decide what is even.
CREATE FUNCTION reeve.window_jobs(q text, r text, tenants text[], k integer)
  RETURNS TABLE (tenant_id text, weight integer, id uuid, score bigint) LANGUAGE plpgsql STABLE SECURITY DEFINER
  SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
#variable_conflict use_column
BEGIN
  RETURN QUERY
  SELECT m.tenant_id, m.weight, z.id,
         (z.priority::bigint << 50)
           + greatest(0, least((1::bigint << 50) - 1, ((extract(epoch FROM z.run_at) - 1577836800) * 1000000)::bigint))
  FROM reeve.may_start(q, r, tenants) m
  CROSS JOIN LATERAL (
    SELECT y.id, y.priority, y.run_at FROM reeve.jobs y
    WHERE y.queue = q AND y.region = r AND y.tenant_id = m.tenant_id AND y.state = 'available'
      AND (m.kinds_only IS NULL OR y.kind = ANY (m.kinds_only)) AND y.kind <> ALL (m.kinds_not)
    ORDER BY y.priority, y.run_at, y.id LIMIT greatest(0, least(k, m.free))) z
  WHERE reeve.window_open(q);
END $$;
GRANT EXECUTE ON FUNCTION reeve.window_lanes(), reeve.window_tenants(text, text, text, integer),
  reeve.window_jobs(text, text, text[], integer) TO reeve_scheduler;

RESET ROLE;
