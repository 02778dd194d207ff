-- Where tenants' rows are. A tenant is placed in the shared database (this one) or in a database of its own, in one region;
-- regions and buckets are declared, so that a mistyped name is refused and not a new place for data.
--
-- Moving a tenant is a state: begin_move (its jobs wait, running ones end) → place_tenant or place_shared → end_move, or
-- cancel_move where nothing was placed. Each placing raises the epoch, which a dedicated database carries in its identity:
-- the old database, a restored copy and another tenant's all differ from what a worker expects, and are refused.
--
-- A dedicated database has this same schema and one row in reeve.identity (0013_context.sql); the control database has
-- none there.
SET LOCAL lock_timeout = '10s';
SET LOCAL ROLE reeve_owner;

CREATE TABLE reeve.regions (
  name              text COLLATE "C" PRIMARY KEY CHECK (name ~ '^[a-z0-9-]{1,32}$'),
  -- Whether this database may hold rows of the region's tenants. Where it may not, they wait for a dedicated one.
  holds_shared_rows boolean NOT NULL
);
CREATE TABLE reeve.buckets (
  name   text COLLATE "C" PRIMARY KEY CHECK (name ~ '^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$'),
  region text COLLATE "C" NOT NULL REFERENCES reeve.regions (name)
);
GRANT SELECT ON reeve.regions, reeve.buckets TO reeve_worker, reeve_ops;
GRANT SELECT, INSERT, UPDATE ON reeve.regions, reeve.buckets TO reeve_dispatch;

-- Tenants that were placed at least once. Nobody reads it but the functions below: the URL leaves sealed, for workers.
CREATE TABLE reeve.placements (
  tenant_id  text COLLATE "C" PRIMARY KEY,
  -- Sealed under the root key to tenant and epoch; NULL in the shared database.
  url_sealed bytea,
  epoch      integer NOT NULL CHECK (epoch > 0),
  region     text COLLATE "C" NOT NULL,
  -- False from the placing to the end of its move.
  settled    boolean NOT NULL,
  -- The transaction that changed the region in this move, if one did.
  region_xid xid8,
  updated_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
ALTER TABLE reeve.placements ENABLE ROW LEVEL SECURITY;
ALTER TABLE reeve.placements FORCE ROW LEVEL SECURITY;
CREATE POLICY dispatch ON reeve.placements TO reeve_dispatch USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, UPDATE ON reeve.placements TO reeve_dispatch;

-- The key of a database that was prepared for the next placing, in its padded forms. It takes effect with that placing
-- (reeve.placement_keys): until then the tenant's present database keeps its own.
CREATE TABLE reeve.prepared_keys (
  tenant_id text COLLATE "C" PRIMARY KEY,
  epoch     integer NOT NULL CHECK (epoch > 0),
  inner_pad bytea NOT NULL CHECK (octet_length(inner_pad) = 64),
  outer_pad bytea NOT NULL CHECK (octet_length(outer_pad) = 64)
);
ALTER TABLE reeve.prepared_keys ENABLE ROW LEVEL SECURITY;
ALTER TABLE reeve.prepared_keys FORCE ROW LEVEL SECURITY;
CREATE POLICY dispatch ON reeve.prepared_keys TO reeve_dispatch USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, UPDATE, DELETE ON reeve.prepared_keys TO reeve_dispatch;

SET LOCAL ROLE reeve_dispatch;

-- As it was until now: every tenant's rows are here.
INSERT INTO reeve.regions (name, holds_shared_rows)
SELECT s.default_region, true FROM reeve.settings s UNION SELECT t.region, true FROM reeve.tenants t;

CREATE FUNCTION reeve.require_region(region text) RETURNS reeve.regions LANGUAGE plpgsql STABLE
  SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  r reeve.regions;
BEGIN
  SELECT * INTO r FROM reeve.regions x WHERE x.name = region;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'reeve: region "%" is not declared', coalesce(region, 'NULL') USING ERRCODE = 'RV031',
      HINT = format('Declare it with `reeve regions declare %s`; declared are: %s.', coalesce(region, 'NAME'),
                    (SELECT coalesce(string_agg(x.name, ', ' ORDER BY x.name), 'none') FROM reeve.regions x));
  END IF;
  RETURN r;
END $$;

-- Told by the app when a workspace is made. Safe to call again: an existing tenant is left as it is. A tenant of a region
-- whose rows may not be here is moving from the start: its jobs wait for its placement.
CREATE OR REPLACE FUNCTION reeve.register_tenant(id text, name text, region text DEFAULT NULL) RETURNS text
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  by_default text := (SELECT s.default_region FROM reeve.settings s);
  r reeve.regions;
BEGIN
  IF id IS NULL OR octet_length(id) NOT BETWEEN 1 AND 64 OR id ~ '[[:cntrl:]]' OR id = '-' THEN
    RAISE EXCEPTION 'reeve: a tenant id has 1 to 64 bytes, no control characters, and is not "-"' USING ERRCODE = 'RV005';
  END IF;
  IF name IS NULL OR length(name) NOT BETWEEN 1 AND 200 THEN
    RAISE EXCEPTION 'reeve: a tenant''s name has 1 to 200 characters' USING ERRCODE = 'RV005';
  END IF;
  IF region !~ '^[a-z0-9-]{1,32}$' THEN
    RAISE EXCEPTION 'reeve: a region has 1 to 32 lower-case letters, digits and hyphens' USING ERRCODE = 'RV005';
  END IF;
  IF coalesce(region, by_default) = by_default THEN
    INSERT INTO reeve.regions AS x (name, holds_shared_rows) VALUES (by_default, true)
    ON CONFLICT ON CONSTRAINT regions_pkey DO NOTHING;
  END IF;
  r := reeve.require_region(coalesce(region, by_default));
  INSERT INTO reeve.tenants AS t (id, name, region, moving)
  VALUES (register_tenant.id, register_tenant.name, r.name, NOT r.holds_shared_rows)
  ON CONFLICT ON CONSTRAINT tenants_pkey DO NOTHING;
  RETURN register_tenant.id;
END $$;

-- What a worker must know of a tenant before it opens its scope: where its rows are and whether it lives. No names.
DROP FUNCTION reeve.tenant_entry(text);
CREATE FUNCTION reeve.tenant_entry(tenant_id text)
  RETURNS TABLE (id text, placement text, region text, state text, moving boolean, epoch integer, url_sealed bytea)
  LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
  SELECT t.id, t.placement, t.region, t.state, t.moving, p.epoch, p.url_sealed
  FROM reeve.tenants t LEFT JOIN reeve.placements p ON p.tenant_id = t.id
  WHERE t.id = tenant_entry.tenant_id
$$;
GRANT EXECUTE ON FUNCTION reeve.tenant_entry(text) TO reeve_worker;

-- What a scope asks of the database that it has opened, in the statement that sets the context. One row, always: whose
-- database it is (NULL: nobody's, the control database), whether it may hold rows of that region, and where it believes
-- the tenant to be, so that a worker whose directory is behind a move is refused.
CREATE FUNCTION reeve.database_facts(tenant text, region text)
  RETURNS TABLE (identity_tenant text, identity_region text, identity_epoch integer, holds_region boolean, placement text)
  LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
  SELECT i.tenant_id, i.region, i.epoch,
         coalesce((SELECT r.holds_shared_rows FROM reeve.regions r WHERE r.name = database_facts.region), false),
         (SELECT t.placement FROM reeve.tenants t WHERE t.id = database_facts.tenant)
  FROM (SELECT) one LEFT JOIN reeve.identity i ON true
$$;
GRANT EXECUTE ON FUNCTION reeve.database_facts(text, text) TO reeve_worker;

-- Declares a region, or changes whether this database may hold its tenants' rows.
CREATE FUNCTION reeve.declare_region(name text, holds_shared_rows boolean, actor text, reason text) RETURNS boolean
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  was reeve.regions;
  here bigint;
BEGIN
  IF (name ~ '^[a-z0-9-]{1,32}$') IS NOT TRUE THEN
    RAISE EXCEPTION 'reeve: a region has 1 to 32 lower-case letters, digits and hyphens' USING ERRCODE = 'RV005';
  END IF;
  SELECT * INTO was FROM reeve.regions r WHERE r.name = declare_region.name FOR UPDATE;
  IF was.holds_shared_rows AND NOT holds_shared_rows THEN
    SELECT count(*) INTO here FROM reeve.tenants t
    WHERE t.region = declare_region.name AND t.placement = 'shared' AND t.state <> 'closed';
    IF here > 0 THEN
      RAISE EXCEPTION 'reeve: the shared database holds rows of % tenants of region "%"', here, name USING ERRCODE = 'RV031',
        HINT = 'Place them in databases of their own first; `reeve tenants list` shows them.';
    END IF;
  END IF;
  INSERT INTO reeve.regions AS r (name, holds_shared_rows)
  VALUES (declare_region.name, declare_region.holds_shared_rows)
  ON CONFLICT ON CONSTRAINT regions_pkey DO UPDATE SET holds_shared_rows = excluded.holds_shared_rows;
  PERFORM reeve.audit_append('-', actor, 'region.declared', 'region:' || name, reason, ARRAY['holds_shared_rows'],
                             NULL, NULL, NULL);
  RETURN was.name IS NULL;
END $$;

-- A bucket stays in its region: what was written to it cannot be called back.
CREATE FUNCTION reeve.declare_bucket(name text, region text, actor text, reason text) RETURNS boolean
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  was text := (SELECT b.region FROM reeve.buckets b WHERE b.name = declare_bucket.name);
BEGIN
  IF (name ~ '^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$') IS NOT TRUE THEN
    RAISE EXCEPTION 'reeve: a bucket''s name has 3 to 63 lower-case letters, digits, dots and hyphens' USING ERRCODE = 'RV005';
  END IF;
  PERFORM reeve.require_region(region);
  IF was <> region THEN
    RAISE EXCEPTION 'reeve: bucket "%" is in region "%", and stays there', name, was USING ERRCODE = 'RV031',
      HINT = 'Declare another bucket for the other region.';
  END IF;
  INSERT INTO reeve.buckets AS b (name, region) VALUES (declare_bucket.name, declare_bucket.region)
  ON CONFLICT ON CONSTRAINT buckets_pkey DO NOTHING;
  PERFORM reeve.audit_append('-', actor, 'bucket.declared', 'bucket:' || name, reason, ARRAY['region'], NULL, NULL, NULL);
  RETURN was IS NULL;
END $$;

-- The tenant's row, locked.
CREATE FUNCTION reeve.lock_moving_tenant(tenant text) RETURNS reeve.tenants LANGUAGE plpgsql VOLATILE
  SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  t reeve.tenants;
BEGIN
  SELECT * INTO t FROM reeve.tenants x WHERE x.id = tenant FOR UPDATE;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'reeve: tenant "%" is not registered', tenant USING ERRCODE = 'RV003',
      HINT = '`reeve tenants list` shows those that are.';
  END IF;
  RETURN t;
END $$;

CREATE FUNCTION reeve.require_moving(t reeve.tenants) RETURNS void LANGUAGE plpgsql STABLE
  SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF NOT t.moving THEN
    RAISE EXCEPTION 'reeve: tenant "%" is not moving', t.id USING ERRCODE = 'RV030',
      HINT = format('Let its jobs wait first: `reeve placement move %s`.', t.id);
  END IF;
END $$;

CREATE FUNCTION reeve.running_jobs(tenant text) RETURNS bigint LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
  AS $$ SELECT count(*) FROM reeve.jobs j WHERE j.tenant_id = tenant AND j.state = 'running' $$;

CREATE FUNCTION reeve.audit_placement(tenant text, action text, fields text[], actor text, reason text) RETURNS void
  LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
  SELECT reeve.audit_append(tenant, actor, action, 'tenant:' || tenant, reason, fields, NULL, NULL, NULL)
$$;

-- From now on its jobs wait. Returns how many still run: they end as they would.
CREATE FUNCTION reeve.begin_move(tenant text, actor text, reason text) RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  t reeve.tenants := reeve.lock_moving_tenant(tenant);
BEGIN
  IF t.moving THEN
    RAISE EXCEPTION 'reeve: tenant "%" is moving already', tenant USING ERRCODE = 'RV030',
      HINT = format('`reeve placement show %s` says how far it is.', tenant);
  END IF;
  UPDATE reeve.tenants x SET moving = true WHERE x.id = tenant;
  PERFORM reeve.audit_placement(tenant, 'placement.move_begun', ARRAY['moving'], actor, reason);
  RETURN reeve.running_jobs(tenant);
END $$;

-- The common half of both placings: nothing of the tenant runs, and its waiting jobs go with it to the new region.
CREATE FUNCTION reeve.change_placement(t reeve.tenants, url_sealed bytea, region text, epoch integer) RETURNS void
  LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  current integer := coalesce((SELECT p.epoch FROM reeve.placements p WHERE p.tenant_id = t.id), 0);
  running bigint;
BEGIN
  PERFORM reeve.require_moving(t);
  IF epoch <> current + 1 THEN
    RAISE EXCEPTION 'reeve: tenant "%" is at epoch %, so the next is % and not %', t.id, current, current + 1, epoch
      USING ERRCODE = 'RV030', HINT = 'Somebody else placed it meanwhile, or its database was prepared for another move.';
  END IF;
  -- A claim that began before the move may be about to commit: it holds its queue's lock until then (reeve.claim), and
  -- whoever comes after sees the tenant moving.
  PERFORM pg_advisory_xact_lock(7262, hashtext(q.queue || '/' || t.id))
  FROM (SELECT k.queue FROM reeve.kinds k UNION SELECT j.queue FROM reeve.jobs j WHERE j.tenant_id = t.id
        ORDER BY 1) q;
  running := reeve.running_jobs(t.id);
  IF running > 0 THEN
    RAISE EXCEPTION 'reeve: % jobs of tenant "%" still run', running, t.id USING ERRCODE = 'RV030',
      HINT = format('Wait for them (`reeve placement show %s`), or cancel them with `reeve jobs cancel`.', t.id);
  END IF;
  INSERT INTO reeve.placements AS p (tenant_id, url_sealed, epoch, region, settled, region_xid)
  VALUES (t.id, change_placement.url_sealed, change_placement.epoch, change_placement.region, false,
          CASE WHEN t.region <> change_placement.region THEN pg_current_xact_id() END)
  ON CONFLICT ON CONSTRAINT placements_pkey DO UPDATE SET url_sealed = excluded.url_sealed, epoch = excluded.epoch,
    region = excluded.region, settled = false, updated_at = clock_timestamp(),
    region_xid = coalesce(excluded.region_xid, CASE WHEN NOT p.settled THEN p.region_xid END);
  UPDATE reeve.tenants x
  SET placement = CASE WHEN change_placement.url_sealed IS NULL THEN 'shared' ELSE 'dedicated' END,
      region = change_placement.region
  WHERE x.id = t.id;
  PERFORM reeve.take_jobs_along(t.id, region);
END $$;

CREATE FUNCTION reeve.take_jobs_along(tenant text, region text) RETURNS void LANGUAGE sql VOLATILE
  SET search_path = pg_catalog, pg_temp AS $$
  UPDATE reeve.jobs j SET region = take_jobs_along.region
  WHERE j.tenant_id = tenant AND j.region <> take_jobs_along.region AND j.state <> 'running'
$$;

-- Places the tenant in a database of its own. Called by `reeve-worker placement set`, which has asked that database for
-- its identity and sealed its URL.
CREATE FUNCTION reeve.place_tenant(tenant text, url_sealed bytea, region text, epoch integer, actor text, reason text)
  RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  t reeve.tenants := reeve.lock_moving_tenant(tenant);
  r reeve.regions := reeve.require_region(region);
BEGIN
  IF octet_length(url_sealed) IS NULL THEN
    RAISE EXCEPTION 'reeve: a dedicated placement has a URL' USING ERRCODE = 'RV005';
  END IF;
  PERFORM reeve.change_placement(t, url_sealed, r.name, epoch);
  INSERT INTO reeve.placement_keys AS k (tenant_id, inner_pad, outer_pad)
  SELECT p.tenant_id, p.inner_pad, p.outer_pad FROM reeve.prepared_keys p
  WHERE p.tenant_id = tenant AND p.epoch = place_tenant.epoch
  ON CONFLICT ON CONSTRAINT placement_keys_pkey
  DO UPDATE SET inner_pad = excluded.inner_pad, outer_pad = excluded.outer_pad;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'reeve: no database was prepared for tenant "%" at epoch %', tenant, epoch USING ERRCODE = 'RV030',
      HINT = format('Prepare it first: `reeve placement prepare %s`.', tenant);
  END IF;
  DELETE FROM reeve.prepared_keys p WHERE p.tenant_id = tenant;
  PERFORM reeve.audit_placement(tenant, 'placement.dedicated', ARRAY['placement', 'url', 'region', 'epoch'], actor, reason);
END $$;

-- Places the tenant in this database. Its rows are brought here by whoever moves it, before.
CREATE FUNCTION reeve.place_shared(tenant text, region text, actor text, reason text) RETURNS integer
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  t reeve.tenants := reeve.lock_moving_tenant(tenant);
  r reeve.regions := reeve.require_region(region);
  next_epoch integer := 1 + coalesce((SELECT p.epoch FROM reeve.placements p WHERE p.tenant_id = tenant), 0);
BEGIN
  IF NOT r.holds_shared_rows THEN
    RAISE EXCEPTION 'reeve: the shared database may not hold rows of region "%"', region USING ERRCODE = 'RV031',
      HINT = format('If it may after all: `reeve regions declare %s --holds-shared-rows`.', region);
  END IF;
  PERFORM reeve.change_placement(t, NULL, r.name, next_epoch);
  DELETE FROM reeve.placement_keys k WHERE k.tenant_id = tenant;
  PERFORM reeve.audit_placement(tenant, 'placement.shared', ARRAY['placement', 'region', 'epoch'], actor, reason);
  RETURN next_epoch;
END $$;

-- The common end of both ways out of a move.
CREATE FUNCTION reeve.stop_moving(t reeve.tenants) RETURNS void LANGUAGE plpgsql VOLATILE
  SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF t.placement = 'shared' AND NOT (reeve.require_region(t.region)).holds_shared_rows THEN
    RAISE EXCEPTION 'reeve: tenant "%" is of region "%", whose rows may not be in the shared database', t.id, t.region
      USING ERRCODE = 'RV031', HINT = 'Place it in a database of its own: `reeve placement prepare`, then `reeve-worker placement set`.';
  END IF;
  UPDATE reeve.tenants x SET moving = false WHERE x.id = t.id;
  PERFORM reeve.ring_doorbell(k.queue, t.region) FROM (SELECT DISTINCT x.queue FROM reeve.kinds x) k;
END $$;

-- The move is over: its jobs run again, at the new place. Not before every worker's directory has forgotten the old one
-- (it believes an entry for 5 s), nor, where the region changed, before everybody has ended who may have enqueued for it.
CREATE FUNCTION reeve.end_move(tenant text, actor text, reason text) RETURNS void LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  t reeve.tenants := reeve.lock_moving_tenant(tenant);
  p reeve.placements;
  left_secs integer;
BEGIN
  PERFORM reeve.require_moving(t);
  SELECT * INTO p FROM reeve.placements x WHERE x.tenant_id = tenant;
  IF p.settled IS NOT FALSE THEN
    RAISE EXCEPTION 'reeve: tenant "%" was placed nowhere in this move', tenant USING ERRCODE = 'RV030',
      HINT = format('Place it, or leave it where it is: `reeve placement cancel %s`.', tenant);
  END IF;
  left_secs := ceil(extract(epoch FROM p.updated_at + interval '10 s' - clock_timestamp()));
  IF left_secs > 0 THEN
    RAISE EXCEPTION 'reeve: workers may still know the old place of tenant "%" for % s', tenant, left_secs
      USING ERRCODE = 'RV032', HINT = 'Try again then; `reeve placement done` waits by itself.';
  END IF;
  IF p.region_xid >= pg_snapshot_xmin(pg_current_snapshot()) THEN
    RAISE EXCEPTION 'reeve: a transaction from before the move is still open, and may enqueue for the old region'
      USING ERRCODE = 'RV032', HINT = 'Try again when it has ended; `reeve doctor` shows the oldest one.';
  END IF;
  PERFORM reeve.take_jobs_along(tenant, t.region);
  UPDATE reeve.placements x SET settled = true WHERE x.tenant_id = tenant;
  PERFORM reeve.stop_moving(t);
  PERFORM reeve.audit_placement(tenant, 'placement.move_ended', ARRAY['moving'], actor, reason);
END $$;

-- The tenant stays where it is, and its jobs run again.
CREATE FUNCTION reeve.cancel_move(tenant text, actor text, reason text) RETURNS void LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  t reeve.tenants := reeve.lock_moving_tenant(tenant);
BEGIN
  PERFORM reeve.require_moving(t);
  IF EXISTS (SELECT FROM reeve.placements p WHERE p.tenant_id = tenant AND NOT p.settled) THEN
    RAISE EXCEPTION 'reeve: tenant "%" was placed already in this move', tenant USING ERRCODE = 'RV030',
      HINT = format('End it with `reeve placement done %s`, or place the tenant again where it was.', tenant);
  END IF;
  PERFORM reeve.stop_moving(t);
  PERFORM reeve.audit_placement(tenant, 'placement.move_cancelled', ARRAY['moving'], actor, reason);
END $$;

-- How far a tenant's move is. Says whether there is a URL, never which.
CREATE FUNCTION reeve.placement(tenant text)
  RETURNS TABLE (placement text, region text, moving boolean, epoch integer, has_url boolean, settled boolean,
                 running bigint, updated_at timestamptz)
  LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
  SELECT t.placement, t.region, t.moving, coalesce(p.epoch, 0), p.url_sealed IS NOT NULL, coalesce(p.settled, true),
         reeve.running_jobs(t.id), p.updated_at
  FROM reeve.tenants t LEFT JOIN reeve.placements p ON p.tenant_id = t.id WHERE t.id = tenant
$$;

-- The first half of `reeve placement prepare`: the epoch that the new database is to carry, and whether a database that is
-- this tenant's already may be prepared anew: not while its jobs run there.
CREATE FUNCTION reeve.prepare_placement(tenant text, region text, actor text, reason text)
  RETURNS TABLE (epoch integer, may_renew boolean) LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  t reeve.tenants := reeve.lock_moving_tenant(tenant);
  r reeve.regions := reeve.require_region(region);
BEGIN
  PERFORM reeve.audit_placement(t.id, 'placement.prepared', ARRAY['identity'], actor, reason);
  RETURN QUERY SELECT 1 + coalesce((SELECT p.epoch FROM reeve.placements p WHERE p.tenant_id = t.id), 0),
                      t.moving AND reeve.running_jobs(t.id) = 0;
END $$;

-- The second half: the key that the new database has made for itself.
CREATE FUNCTION reeve.keep_prepared_key(tenant text, epoch integer, inner_pad bytea, outer_pad bytea) RETURNS void
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  t reeve.tenants := reeve.lock_moving_tenant(tenant);
  current integer := coalesce((SELECT p.epoch FROM reeve.placements p WHERE p.tenant_id = tenant), 0);
BEGIN
  IF epoch <> current + 1 THEN
    RAISE EXCEPTION 'reeve: tenant "%" was placed meanwhile and is at epoch %', tenant, current USING ERRCODE = 'RV030',
      HINT = 'Prepare the database again.';
  END IF;
  INSERT INTO reeve.prepared_keys AS k (tenant_id, epoch, inner_pad, outer_pad)
  VALUES (t.id, keep_prepared_key.epoch, keep_prepared_key.inner_pad, keep_prepared_key.outer_pad)
  ON CONFLICT ON CONSTRAINT prepared_keys_pkey
  DO UPDATE SET epoch = excluded.epoch, inner_pad = excluded.inner_pad, outer_pad = excluded.outer_pad;
END $$;

-- A border that was about to be crossed by a command, not by a job (those are recorded when they are settled).
CREATE FUNCTION reeve.audit_mismatch(tenant text, actor text, why text) RETURNS void LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM reeve.lock_moving_tenant(tenant);
  PERFORM reeve.audit_placement(tenant, 'placement.refused', '{}', actor, why);
END $$;
GRANT EXECUTE ON FUNCTION reeve.declare_region(text, boolean, text, text), reeve.declare_bucket(text, text, text, text),
  reeve.begin_move(text, text, text), reeve.place_tenant(text, bytea, text, integer, text, text),
  reeve.place_shared(text, text, text, text), reeve.end_move(text, text, text), reeve.cancel_move(text, text, text),
  reeve.placement(text), reeve.prepare_placement(text, text, text, text),
  reeve.keep_prepared_key(text, integer, bytea, bytea), reeve.audit_mismatch(text, text, text) TO reeve_ops;

-- In a database that becomes a tenant's own, as its administrator: refuses one that is in use otherwise. Asked before the
-- schema is touched as well. Granted to nobody.
CREATE FUNCTION reeve.require_own_database(tenant text) RETURNS void LANGUAGE plpgsql STABLE
  SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  other text := (SELECT i.tenant_id FROM reeve.identity i WHERE i.tenant_id <> tenant);
BEGIN
  IF other IS NOT NULL THEN
    RAISE EXCEPTION 'reeve: this database is tenant "%"''s', other USING ERRCODE = 'RV031',
      HINT = 'Each tenant has a database of its own; is the address right?';
  END IF;
  IF EXISTS (SELECT FROM reeve.tenants t WHERE t.id <> tenant) OR EXISTS (SELECT FROM reeve.placements)
     OR (EXISTS (SELECT FROM reeve.tenants) AND NOT EXISTS (SELECT FROM reeve.identity)) THEN
    RAISE EXCEPTION 'reeve: this database is in use as a shared or control database' USING ERRCODE = 'RV031',
      HINT = 'A dedicated database starts without tenants; is the address right?';
  END IF;
END $$;

-- Says whose it is, and makes its key, which its administrator takes to the control database.
CREATE FUNCTION reeve.set_identity(tenant text, region text, epoch integer, may_renew boolean)
  RETURNS TABLE (inner_pad bytea, outer_pad bytea) LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  key bytea := sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()));
  was integer := (SELECT i.epoch FROM reeve.identity i);
BEGIN
  PERFORM reeve.require_own_database(tenant);
  IF was > epoch THEN
    RAISE EXCEPTION 'reeve: this database is at epoch % already, which is later than %', was, epoch USING ERRCODE = 'RV031',
      HINT = 'Is the control database an old copy?';
  END IF;
  -- Of the same epoch it was prepared for this very placing, and nothing lives in it yet.
  IF was < epoch AND NOT may_renew THEN
    RAISE EXCEPTION 'reeve: this database is tenant "%"''s now, and its jobs may run in it', tenant USING ERRCODE = 'RV030',
      HINT = format('Begin the move first (`reeve placement move %s`), and wait until none runs.', tenant);
  END IF;
  INSERT INTO reeve.regions AS r (name, holds_shared_rows) VALUES (set_identity.region, false)
  ON CONFLICT ON CONSTRAINT regions_pkey DO NOTHING;
  -- The tenant's own row, for whatever refers to it here. Jobs are claimed in the control database alone.
  INSERT INTO reeve.tenants AS t (id, name, placement, region) VALUES (tenant, tenant, 'dedicated', set_identity.region)
  ON CONFLICT ON CONSTRAINT tenants_pkey DO UPDATE SET placement = 'dedicated', region = excluded.region;
  RETURN QUERY
  INSERT INTO reeve.identity AS x (tenant_id, region, epoch, inner_pad, outer_pad)
  VALUES (tenant, set_identity.region, set_identity.epoch, reeve.padded_key(key, 54), reeve.padded_key(key, 92))
  ON CONFLICT ON CONSTRAINT identity_pkey DO UPDATE SET region = excluded.region, epoch = excluded.epoch,
    inner_pad = excluded.inner_pad, outer_pad = excluded.outer_pad
  RETURNING x.inner_pad, x.outer_pad;
END $$;

RESET ROLE;
