-- A claim that knows where it was. Rows that are over stay in jobs_ready until they are vacuumed, and a held snapshot keeps
-- them for as long as it lasts. They stand before the ready ones of their tenant, and each claim passed by all of them,
-- twice: in a minute of a held snapshot that cost nine tenths of the pace. A claimer whose claims pass by much now says
-- whom it served and since when those jobs are (jobs/src/queue/marks.rs), and what is older is not looked at, until it
-- claims without again, soon.
SET LOCAL ROLE reeve_dispatch;

-- Claims up to `n` jobs fairly. Up to n tenants with ready jobs are gathered from the cursor onwards, around the ring;
-- then places are dealt in rounds, one to each tenant (as many as its weight) a round, until there are none left. The
-- next call begins behind the last tenant served, so whoever a cut round left out comes first. All places go to whoever
-- has work. Before that come jobs of kinds with a deadline. The attempt is counted here, so that a job that kills its
-- worker is bounded.
-- Of `known` tenants, where there are any, only jobs that are due since then (`since`, one for each) are looked at, once,
-- and nobody else's.
-- Returns the jobs, then one row with id NULL: its tenant_id is the cursor for the caller's next call, its attempt 1 when
-- tenants are left that were not looked at, its rescues the microseconds spent on looking; where it passed by much, its payload
-- is the tenants that were served, each with the earliest time that its jobs were due.
CREATE FUNCTION reeve.claim(q text, r text, n integer, w text, cur text, lease_secs double precision, known text[],
                            since timestamptz[])
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
  -- Seconds spent on looking for jobs that may start.
  looking double precision := 0;
  began timestamptz;
  taken uuid[] := '{}';
  read_before bigint := pg_stat_get_xact_tuples_returned('reeve.jobs_ready'::regclass);
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
    began := clock_timestamp();
    IF known IS NOT NULL THEN
      looked := known;
    ELSE
      looked := reeve.ring(q, r, pos, CASE WHEN wrapped THEN cur END, places);
      IF cardinality(looked) < places AND NOT wrapped THEN
        wrapped := true;
        looked := looked || reeve.ring(q, r, '', cur, places - cardinality(looked));
      END IF;
      all_seen := wrapped AND cardinality(looked) < places;
      EXIT WHEN cardinality(looked) = 0;
      -- Past every tenant that was looked at, not only those served: a hundred capped ones must not be a wall.
      pos := looked[cardinality(looked)];
    END IF;
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
          SELECT greatest(0, least(quantum::bigint * tn.weight, cap.free,
                                   reeve.starts_free(tn.starts_per_min, ahead.due_at), places)) AS n) share
        CROSS JOIN LATERAL (
          SELECT z.id, row_number() OVER () AS nth FROM (
            -- One range of the index; or, of a known tenant, one for each priority, which begins at its time.
            SELECT ready.id FROM (SELECT 0::smallint AS low, 4::smallint AS high WHERE since IS NULL
                                  UNION ALL SELECT p::smallint, p::smallint FROM generate_series(0, 4) p WHERE since IS NOT NULL) stretch
            CROSS JOIN LATERAL (
              SELECT y.id FROM reeve.jobs y
              WHERE y.queue = q AND y.region = r AND y.tenant_id = u.t AND y.state = 'available'
                AND (y.priority, y.run_at) >= (stretch.low, coalesce(since[u.o], '-infinity')) AND y.priority <= stretch.high
                AND (tn.state = 'active' OR y.kind = ANY (closing_kinds))
                AND (tn.kinds_off IS NULL OR y.kind <> ALL (tn.kinds_off))
                AND (paused_kinds IS NULL OR y.kind <> ALL (paused_kinds))
              ORDER BY y.priority, y.run_at, y.id LIMIT share.n FOR UPDATE SKIP LOCKED) ready
            LIMIT share.n) z) x
        ORDER BY round, u.o LIMIT places) c;
      looking := looking + extract(epoch FROM clock_timestamp() - began);
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
        taken := taken || chosen;
        places := places - cardinality(chosen);
        IF places <= 0 THEN
          pos := last_served;
          EXIT;
        END IF;
      END IF;
    END IF;
    EXIT WHEN known IS NOT NULL;
    IF all_seen THEN
      EXIT WHEN more_there IS NOT TRUE;
      -- Capped tenants left places over: whoever has more takes them, in another round from the start.
      pos := cur;
      wrapped := false;
      again := true;
    END IF;
    more_there := false;
  END LOOP;
  -- By the server's own count of entries read, and not by a time, which says more of the machine's load: a claim that meets
  -- nothing that is over reads some twenty for each job and fewer than twenty thousand.
  RETURN QUERY SELECT NULL::uuid, pos, NULL::text,
                      CASE WHEN known IS NOT NULL OR pg_stat_get_xact_tuples_returned('reeve.jobs_ready'::regclass) - read_before
                             > 20000 + 20 * cardinality(taken) THEN (
                        SELECT jsonb_object_agg(due.tenant_id, due.first) FROM (
                          SELECT j.tenant_id, min(j.run_at) AS first FROM unnest(taken) AS u (id) JOIN reeve.jobs j ON j.id = u.id
                          GROUP BY j.tenant_id) due) END,
                      CASE WHEN all_seen THEN 0 ELSE 1 END, NULL::integer,
                      (looking * 1e6)::integer, NULL::text, NULL::uuid, NULL::text, NULL::boolean;
END $$;

-- For those who know nothing.
CREATE OR REPLACE FUNCTION reeve.claim(q text, r text, n integer, w text, cur text, lease_secs double precision)
  RETURNS TABLE (id uuid, tenant_id text, kind text, payload jsonb, attempt integer, attempts_max integer,
                 rescues integer, traceparent text, lease_token uuid, context text, urgent boolean)
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN QUERY SELECT * FROM reeve.claim(q, r, n, w, cur, lease_secs, NULL, NULL);
END $$;

GRANT EXECUTE ON FUNCTION reeve.claim(text, text, integer, text, text, double precision, text[], timestamptz[]) TO reeve_worker;

RESET ROLE;
