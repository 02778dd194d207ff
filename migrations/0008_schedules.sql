-- Schedules: when which kind becomes due. Cadence is declared beside the kind in jobs/src/kinds.rs and copied here by
-- `reeve migrate`; the operator's columns (paused, cron_override) are left alone by that copy.
SET LOCAL ROLE reeve_owner;

CREATE TABLE reeve.schedules (
  kind          text COLLATE "C" PRIMARY KEY REFERENCES reeve.kinds (name),
  cron          text NOT NULL,
  cron_override text,
  time_zone     text NOT NULL DEFAULT 'UTC',
  -- Tenants are spread over this many seconds after the slot by a hash of their id.
  window_secs   integer NOT NULL DEFAULT 0 CHECK (window_secs BETWEEN 0 AND 86400),
  -- After downtime: latest runs the last missed slot once, skip waits for the next.
  catch_up      text NOT NULL DEFAULT 'latest' CHECK (catch_up IN ('latest', 'skip')),
  paused        boolean NOT NULL DEFAULT false,
  -- NULL until a scheduler has computed it: the first run is the first slot after it was declared.
  next_at       timestamptz,
  last_slot_at  timestamptz
);
-- Whoever changes when a schedule is due, by whatever statement: the slot computed from the former cadence is void, and
-- the new cadence starts as if just declared. Otherwise an override would wait for the old slot, perhaps a month.
CREATE FUNCTION reeve.schedule_recompute() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF (coalesce(NEW.cron_override, NEW.cron), NEW.time_zone) IS DISTINCT FROM
     (coalesce(OLD.cron_override, OLD.cron), OLD.time_zone) THEN
    NEW.next_at := NULL;
  END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER recompute BEFORE UPDATE OF cron, cron_override, time_zone ON reeve.schedules
  FOR EACH ROW EXECUTE FUNCTION reeve.schedule_recompute();

GRANT SELECT, INSERT, UPDATE ON reeve.schedules TO reeve_dispatch;
GRANT SELECT ON reeve.schedules TO reeve_ops;

SET LOCAL ROLE reeve_dispatch;

-- Locks and returns what needs a scheduler: due slots, and schedules that never had one. Locked rows belong to another
-- scheduler, and are skipped. The database's clock decides, so that a scheduler's own cannot.
CREATE FUNCTION reeve.schedules_due()
  RETURNS TABLE (kind text, cron text, time_zone text, catch_up text, next_at timestamptz, now_at timestamptz)
  LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
  SELECT s.kind, coalesce(s.cron_override, s.cron), s.time_zone, s.catch_up, s.next_at, now()
  FROM reeve.schedules s WHERE NOT s.paused AND (s.next_at IS NULL OR s.next_at <= now())
  ORDER BY s.next_at NULLS FIRST FOR UPDATE SKIP LOCKED
$$;

-- Moves a schedule on and, when a slot is named, enqueues one job per tenant for it: one INSERT … SELECT.
-- Fires only if next_at still is what the caller saw, so a scheduler that slept through its lock changes nothing.
-- The unique key (slot) makes a second firing of one slot a no-op while its jobs live. Returns jobs made, or NULL when
-- the schedule had moved on.
CREATE FUNCTION reeve.schedule_fire(kind text, seen_at timestamptz, slot timestamptz, following timestamptz)
  RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  s reeve.schedules;
  k reeve.kinds;
  made bigint := 0;
BEGIN
  UPDATE reeve.schedules x SET next_at = following, last_slot_at = coalesce(slot, x.last_slot_at)
  WHERE x.kind = schedule_fire.kind AND x.next_at IS NOT DISTINCT FROM seen_at RETURNING x.* INTO s;
  IF NOT FOUND THEN
    RETURN NULL;
  END IF;
  IF slot IS NULL THEN
    RETURN 0;
  END IF;
  SELECT * INTO STRICT k FROM reeve.kinds x WHERE x.name = schedule_fire.kind;
  INSERT INTO reeve.jobs (id, tenant_id, kind, queue, region, state, priority, attempts_max, run_at, unique_key, payload)
  SELECT reeve.new_id(), t.id, k.name, k.queue, t.region, 'scheduled', k.priority, k.attempts_max,
         slot + make_interval(secs => CASE WHEN s.window_secs = 0 THEN 0
           ELSE ((hashtextextended(t.id || k.name, 0) & 2147483647) % s.window_secs)::double precision END),
         'slot:' || to_char(slot AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'), '{}'
  FROM reeve.tenants t WHERE t.state = 'active' OR (t.state = 'closing' AND k.runs_when_closing)
  ON CONFLICT DO NOTHING;
  GET DIAGNOSTICS made = ROW_COUNT;
  RETURN made;
END $$;
GRANT EXECUTE ON FUNCTION reeve.schedules_due(), reeve.schedule_fire(text, timestamptz, timestamptz, timestamptz)
  TO reeve_scheduler;

RESET ROLE;
