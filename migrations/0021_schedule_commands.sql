-- What operators do to schedules, each audited with who and why; catching up with every missed slot; and the fan-out of many
-- slots in one statement.
--   ops        change_schedule, pause_schedule, run_schedule
--   scheduler  schedules_due (anew), schedule_fire_slots
-- Not here: whether a cron expression or a zone can be followed. The parser is in the programs: the command checks before it
-- calls, and the scheduler leaves a schedule alone that it cannot read.
SET LOCAL ROLE reeve_owner;

ALTER TABLE reeve.schedules DROP CONSTRAINT schedules_catch_up_check;
-- After downtime: skip waits for the next slot, latest runs the last missed one once, all runs each of them, oldest first.
ALTER TABLE reeve.schedules ADD CONSTRAINT schedules_catch_up_check CHECK (catch_up IN ('skip', 'latest', 'all'));
-- The operator's window. `reeve migrate` copies the kinds' own to window_secs, and would take it away there.
ALTER TABLE reeve.schedules ADD COLUMN window_override integer CHECK (window_override BETWEEN 0 AND 86400);

SET LOCAL ROLE reeve_dispatch;

DROP FUNCTION reeve.schedules_due();
-- Locks and returns what needs a scheduler: due slots, and schedules that never had one. Locked rows belong to another
-- scheduler, and are skipped. The database's clock decides, so that a scheduler's own cannot. slots_max: how many missed
-- slots may fire at a time, so that one transaction makes some 200,000 jobs, or one slot's.
CREATE FUNCTION reeve.schedules_due()
  RETURNS TABLE (kind text, cron text, time_zone text, catch_up text, next_at timestamptz, now_at timestamptz,
                 slots_max integer)
  LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
  SELECT s.kind, coalesce(s.cron_override, s.cron), s.time_zone, s.catch_up, s.next_at, now(),
         CASE WHEN s.catch_up = 'all' THEN
           greatest(1, least(1000, 200000 / greatest(1, (SELECT count(*) FROM reeve.tenants t WHERE t.state <> 'closed'))))
         ELSE 1 END::integer
  FROM reeve.schedules s WHERE NOT s.paused AND (s.next_at IS NULL OR s.next_at <= now())
  ORDER BY s.next_at NULLS FIRST FOR UPDATE OF s SKIP LOCKED
$$;

-- The jobs of these slots: one for each tenant and slot, by one INSERT … SELECT, however many tenants there are. Nothing is
-- looked up for each. Whoever may not work now (a paused or moving tenant, a kind switched off) gets its jobs too: they wait,
-- as the claim has it. A closed tenant gets none, and a closing one those that run then. `only`: this tenant alone.
CREATE FUNCTION reeve.fan_out(k reeve.kinds, slots timestamptz[], window_secs integer, key text, only_tenant text)
  RETURNS bigint LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  made bigint;
BEGIN
  INSERT INTO reeve.jobs (id, tenant_id, kind, queue, region, state, priority, attempts_max, run_at, unique_key, payload)
  SELECT reeve.new_id(), t.id, k.name, k.queue, t.region, 'scheduled', k.priority, k.attempts_max,
         slot + make_interval(secs => CASE WHEN window_secs = 0 THEN 0
           ELSE ((hashtextextended(t.id || k.name, 0) & 2147483647) % window_secs)::double precision END),
         coalesce(key, 'slot:' || to_char(slot AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')), '{}'
  FROM reeve.tenants t CROSS JOIN unnest(slots) slot
  WHERE (t.state = 'active' OR (t.state = 'closing' AND k.runs_when_closing))
    AND (only_tenant IS NULL OR t.id = only_tenant)
  ORDER BY slot
  ON CONFLICT DO NOTHING;
  GET DIAGNOSTICS made = ROW_COUNT;
  RETURN made;
END $$;

-- Moves a schedule on and fires these slots, none or many. Fires only if next_at still is what the caller saw, so a scheduler
-- that slept through its lock changes nothing. The unique key of each slot makes a second firing a no-op while its jobs live.
-- Returns jobs made, or NULL when the schedule had moved on.
CREATE FUNCTION reeve.schedule_fire_slots(kind text, seen_at timestamptz, slots timestamptz[], following timestamptz)
  RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  s reeve.schedules;
  k reeve.kinds;
BEGIN
  IF cardinality(slots) > 1000 THEN
    RAISE EXCEPTION 'reeve: at most 1000 slots fire at a time' USING ERRCODE = 'RV005';
  END IF;
  UPDATE reeve.schedules x
  SET next_at = following, last_slot_at = coalesce((SELECT max(slot) FROM unnest(slots) slot), x.last_slot_at)
  WHERE x.kind = schedule_fire_slots.kind AND x.next_at IS NOT DISTINCT FROM seen_at RETURNING x.* INTO s;
  IF NOT FOUND THEN
    RETURN NULL;
  END IF;
  IF coalesce(cardinality(slots), 0) = 0 THEN
    RETURN 0;
  END IF;
  SELECT * INTO STRICT k FROM reeve.kinds x WHERE x.name = schedule_fire_slots.kind;
  RETURN reeve.fan_out(k, slots, coalesce(s.window_override, s.window_secs), NULL, NULL);
END $$;
GRANT EXECUTE ON FUNCTION reeve.schedules_due(), reeve.schedule_fire_slots(text, timestamptz, timestamptz[], timestamptz)
  TO reeve_scheduler;

-- For schedulers from before this migration.
CREATE OR REPLACE FUNCTION reeve.schedule_fire(kind text, seen_at timestamptz, slot timestamptz, following timestamptz)
  RETURNS bigint LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
  SELECT reeve.schedule_fire_slots(kind, seen_at, array_remove(ARRAY[slot], NULL), following)
$$;

-- The schedule's row, locked, or a refusal that lists those there are.
CREATE FUNCTION reeve.lock_schedule(kind text) RETURNS reeve.schedules LANGUAGE plpgsql VOLATILE
  SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  s reeve.schedules;
BEGIN
  SELECT * INTO s FROM reeve.schedules x WHERE x.kind = lock_schedule.kind FOR UPDATE;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'reeve: there is no schedule of kind "%"', coalesce(kind, 'NULL') USING ERRCODE = 'RV004',
      HINT = 'Schedules: ' || coalesce((SELECT string_agg(x.kind, ', ' ORDER BY x.kind) FROM reeve.schedules x), 'none');
  END IF;
  RETURN s;
END $$;

-- Makes the fields of `changes` the schedule's: cron_override and window_override (null gives the kind's own back), time_zone,
-- catch_up. Returns the names of those that were different; when there is none, nothing is written or audited.
CREATE FUNCTION reeve.change_schedule(kind text, changes jsonb, actor text, reason text) RETURNS text[]
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  fields constant text[] := ARRAY['cron_override', 'time_zone', 'window_override', 'catch_up'];
  was reeve.schedules;
  anew reeve.schedules;
  changed text[];
BEGIN
  IF jsonb_typeof(changes) IS DISTINCT FROM 'object' OR changes = '{}' OR NOT fields @> ARRAY(SELECT jsonb_object_keys(changes))
  THEN
    RAISE EXCEPTION 'reeve: of a schedule % can be set', array_to_string(fields, ', ') USING ERRCODE = 'RV005';
  END IF;
  was := reeve.lock_schedule(kind);
  anew := jsonb_populate_record(was, changes);
  SELECT array_agg(c.key ORDER BY c.key) INTO changed FROM jsonb_each(changes) c
  WHERE to_jsonb(was) -> c.key IS DISTINCT FROM to_jsonb(anew) -> c.key;
  IF changed IS NULL THEN
    RETURN '{}';
  END IF;
  -- The trigger of 0008 voids the slot that was computed, where the cadence is another now.
  UPDATE reeve.schedules x SET cron_override = anew.cron_override, time_zone = anew.time_zone,
    window_override = anew.window_override, catch_up = anew.catch_up
  WHERE x.kind = change_schedule.kind;
  PERFORM reeve.audit_append('-', actor, 'schedule.changed', 'schedule:' || kind, reason, changed, NULL, NULL, NULL);
  RETURN changed;
EXCEPTION WHEN check_violation OR not_null_violation OR invalid_text_representation OR numeric_value_out_of_range THEN
  RAISE EXCEPTION 'reeve: a window is 0 to 86400 seconds, a catch-up policy skip, latest or all, and a time zone not null'
    USING ERRCODE = 'RV005';
END $$;

-- A paused schedule makes no jobs; its slots count as missed, and its catch-up policy says what becomes of them. Returns
-- whether it was otherwise before.
CREATE FUNCTION reeve.pause_schedule(kind text, pause boolean, actor text, reason text) RETURNS boolean
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  was reeve.schedules := reeve.lock_schedule(kind);
BEGIN
  IF was.paused = pause THEN
    RETURN false;
  END IF;
  UPDATE reeve.schedules x SET paused = pause WHERE x.kind = pause_schedule.kind;
  PERFORM reeve.audit_append('-', actor, CASE WHEN pause THEN 'schedule.paused' ELSE 'schedule.resumed' END,
                             'schedule:' || kind, reason, ARRAY['paused'], NULL, NULL, NULL);
  RETURN true;
END $$;

-- A run outside the cadence, now and not spread, of one tenant or (NULL) of all; also of a paused schedule, which is not moved
-- on. While the jobs of such a run live, another adds none. Returns how many were made.
CREATE FUNCTION reeve.run_schedule(kind text, tenant text, actor text, reason text) RETURNS bigint
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  s reeve.schedules := reeve.lock_schedule(kind);
  k reeve.kinds;
  t reeve.tenants;
  made bigint;
BEGIN
  SELECT * INTO STRICT k FROM reeve.kinds x WHERE x.name = s.kind;
  IF tenant IS NOT NULL THEN
    t := reeve.lock_tenant(tenant);
    IF t.state = 'closing' AND NOT k.runs_when_closing THEN
      RAISE EXCEPTION 'reeve: tenant "%" is closing, and % does not run then', tenant, kind USING ERRCODE = 'RV006';
    END IF;
  END IF;
  made := reeve.fan_out(k, ARRAY[now()], 0, 'run', tenant);
  PERFORM reeve.audit_append(coalesce(tenant, '-'), actor, 'schedule.run', 'schedule:' || kind, reason, '{}', NULL, NULL, NULL);
  RETURN made;
END $$;
GRANT EXECUTE ON FUNCTION reeve.change_schedule(text, jsonb, text, text), reeve.pause_schedule(text, boolean, text, text),
  reeve.run_schedule(text, text, text, text) TO reeve_ops;

RESET ROLE;
