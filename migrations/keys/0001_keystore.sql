-- The keystore: what opens everything else, in a database of its own. It is in none of the backups that its keys open, so
-- that a key which is destroyed here is gone; its own backup is made apart and kept for days. Run as the administrator of
-- the keystore's database, by `reeve migrate`.
--   reeve_keys_owner   owns all of it; nobody logs in as it
--   reeve_keyring      the worker's login here, and the only one: it may call the functions below and read no table
-- A key never stands here in the clear: what is stored is wrapped by a key that a provider keeps (`provider_ref`).
DO $$
DECLARE
  role_name text;
BEGIN
  FOREACH role_name IN ARRAY ARRAY['reeve_keys_owner', 'reeve_keyring'] LOOP
    CONTINUE WHEN EXISTS (SELECT FROM pg_roles WHERE rolname = role_name);
    BEGIN
      EXECUTE format('CREATE ROLE %I %s NOINHERIT NOSUPERUSER NOBYPASSRLS NOCREATEDB NOCREATEROLE', role_name,
                     CASE role_name WHEN 'reeve_keys_owner' THEN 'NOLOGIN' ELSE 'LOGIN' END);
    EXCEPTION WHEN duplicate_object OR unique_violation THEN
      NULL; -- another keystore of the cluster is being migrated at this moment
    END;
  END LOOP;
  IF NOT pg_has_role(current_user, 'reeve_keys_owner', 'MEMBER') THEN
    EXECUTE format('GRANT reeve_keys_owner TO %I', current_user);
  END IF;
  EXECUTE format('REVOKE ALL ON DATABASE %I FROM PUBLIC', current_database());
  EXECUTE format('GRANT CONNECT ON DATABASE %I TO reeve_keyring', current_database());
END $$;
REVOKE ALL ON SCHEMA public FROM PUBLIC;

CREATE SCHEMA keys AUTHORIZATION reeve_keys_owner;
REVOKE ALL ON SCHEMA keys FROM PUBLIC;
GRANT USAGE ON SCHEMA keys TO reeve_keyring;
ALTER DEFAULT PRIVILEGES FOR ROLE reeve_keys_owner REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;

-- What a program asks at start: is this a keystore that I know?
CREATE FUNCTION keys.schema_version() RETURNS bigint LANGUAGE sql STABLE SECURITY DEFINER
  SET search_path = pg_catalog, pg_temp
  AS $$ SELECT max(version) FROM _reeve.migrations WHERE success $$;
REVOKE EXECUTE ON FUNCTION keys.schema_version() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION keys.schema_version() TO reeve_keyring;

SET LOCAL ROLE reeve_keys_owner;

-- The platform's keys, one version to one key of a provider. `check_wrapped` is a random key that the provider wrapped,
-- `check_value` HMAC-SHA256 over a constant under it: who opens the one and does not get the other has another key
-- under this version's name, and must write nothing.
CREATE TABLE keys.platform_keys (
  version       integer PRIMARY KEY CHECK (version > 0),
  provider_ref  text NOT NULL UNIQUE CHECK (length(provider_ref) BETWEEN 5 AND 512),
  check_wrapped bytea NOT NULL CHECK (octet_length(check_wrapped) BETWEEN 48 AND 8192),
  check_value   bytea NOT NULL CHECK (octet_length(check_value) = 32),
  state         text NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'primary', 'decrypt_only', 'retired')),
  created_at    timestamptz NOT NULL DEFAULT now(),
  changed_at    timestamptz NOT NULL DEFAULT now());
CREATE UNIQUE INDEX platform_keys_primary ON keys.platform_keys (state) WHERE state = 'primary';

-- The tenants' keys. A destroyed one keeps its row, and nothing that opens anything.
CREATE TABLE keys.tenant_keys (
  tenant_id        text NOT NULL CHECK (length(tenant_id) BETWEEN 1 AND 64),
  version          integer NOT NULL CHECK (version > 0),
  platform_version integer NOT NULL REFERENCES keys.platform_keys,
  wrapped          bytea CHECK (octet_length(wrapped) BETWEEN 48 AND 8192),
  region           text NOT NULL,
  state            text NOT NULL DEFAULT 'active' CHECK (state IN ('active', 'retiring', 'retired', 'destroyed')),
  created_at       timestamptz NOT NULL DEFAULT now(),
  changed_at       timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (tenant_id, version),
  CHECK ((state = 'destroyed') = (wrapped IS NULL)));
CREATE UNIQUE INDEX tenant_keys_active ON keys.tenant_keys (tenant_id) WHERE state = 'active';
CREATE INDEX tenant_keys_platform ON keys.tenant_keys (platform_version, tenant_id, version) WHERE wrapped IS NOT NULL;

-- Keys that are to be gone for good. It outlives them, stands in the control database as well (reeve.destroyed_keys), and
-- each is replayed into the other before a key is served: a keystore put back from a backup has its destroyed keys again.
CREATE TABLE keys.destroyed (
  tenant_id    text NOT NULL,
  version      integer NOT NULL,
  destroyed_at timestamptz NOT NULL DEFAULT now(),
  actor        text NOT NULL,
  reason       text NOT NULL,
  PRIMARY KEY (tenant_id, version));

-- A state goes one way, and neither what was destroyed nor the ledger comes back.
CREATE FUNCTION keys.guard() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  platform_order CONSTANT text[] := ARRAY['pending', 'primary', 'decrypt_only', 'retired'];
  tenant_order CONSTANT text[] := ARRAY['active', 'retiring', 'retired', 'destroyed'];
BEGIN
  IF TG_TABLE_NAME = 'destroyed' OR TG_OP IN ('DELETE', 'TRUNCATE') THEN
    RAISE EXCEPTION 'reeve: the keystore forgets nothing: no % on keys.%', TG_OP, TG_TABLE_NAME USING ERRCODE = 'RV007';
  ELSIF TG_TABLE_NAME = 'platform_keys' THEN
    IF (NEW.version, NEW.provider_ref, NEW.check_wrapped, NEW.check_value)
         IS DISTINCT FROM (OLD.version, OLD.provider_ref, OLD.check_wrapped, OLD.check_value)
       -- What only opens may become primary again: a rotation can be taken back.
       OR (array_position(platform_order, NEW.state) < array_position(platform_order, OLD.state)
           AND NOT (OLD.state = 'decrypt_only' AND NEW.state = 'primary')) THEN
      RAISE EXCEPTION 'reeve: platform key version % is what it is', OLD.version USING ERRCODE = 'RV007';
    END IF;
  ELSIF (NEW.tenant_id, NEW.version, NEW.region) IS DISTINCT FROM (OLD.tenant_id, OLD.version, OLD.region)
        OR array_position(tenant_order, NEW.state) < array_position(tenant_order, OLD.state) THEN
    RAISE EXCEPTION 'reeve: key version % of this tenant is what it is', OLD.version USING ERRCODE = 'RV007';
  END IF;
  NEW.changed_at := now();
  RETURN NEW;
END $$;
CREATE TRIGGER guard BEFORE UPDATE OR DELETE ON keys.platform_keys FOR EACH ROW EXECUTE FUNCTION keys.guard();
CREATE TRIGGER guard BEFORE UPDATE OR DELETE ON keys.tenant_keys FOR EACH ROW EXECUTE FUNCTION keys.guard();
CREATE TRIGGER guard BEFORE UPDATE OR DELETE ON keys.destroyed FOR EACH ROW EXECUTE FUNCTION keys.guard();
CREATE TRIGGER guard_all BEFORE TRUNCATE ON keys.platform_keys FOR EACH STATEMENT EXECUTE FUNCTION keys.guard();
CREATE TRIGGER guard_all BEFORE TRUNCATE ON keys.tenant_keys FOR EACH STATEMENT EXECUTE FUNCTION keys.guard();
CREATE TRIGGER guard_all BEFORE TRUNCATE ON keys.destroyed FOR EACH STATEMENT EXECUTE FUNCTION keys.guard();

CREATE FUNCTION keys.platform() RETURNS SETOF keys.platform_keys LANGUAGE sql STABLE SECURITY DEFINER
  SET search_path = pg_catalog, pg_temp AS $$ SELECT * FROM keys.platform_keys ORDER BY version $$;

-- False: the version or the reference is taken.
CREATE FUNCTION keys.add_platform(version integer, provider_ref text, check_wrapped bytea, check_value bytea) RETURNS boolean
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  INSERT INTO keys.platform_keys (version, provider_ref, check_wrapped, check_value)
  VALUES (add_platform.version, add_platform.provider_ref, add_platform.check_wrapped, add_platform.check_value)
  ON CONFLICT DO NOTHING;
  RETURN FOUND;
END $$;

-- From now on new keys are wrapped by this version.
CREATE FUNCTION keys.make_primary(version integer) RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  LOCK TABLE keys.platform_keys IN SHARE ROW EXCLUSIVE MODE;
  IF NOT EXISTS (SELECT FROM keys.platform_keys p WHERE p.version = make_primary.version AND p.state <> 'retired') THEN
    RETURN false;
  END IF;
  UPDATE keys.platform_keys p SET state = 'decrypt_only' WHERE p.state = 'primary' AND p.version <> make_primary.version;
  UPDATE keys.platform_keys p SET state = 'primary' WHERE p.version = make_primary.version AND p.state <> 'primary';
  RETURN true;
END $$;

-- How many keys that still open something a platform version wraps.
CREATE FUNCTION keys.wrapped_by(version integer) RETURNS bigint LANGUAGE sql STABLE SECURITY DEFINER
  SET search_path = pg_catalog, pg_temp
  AS $$ SELECT count(*) FROM keys.tenant_keys t WHERE t.platform_version = wrapped_by.version AND t.wrapped IS NOT NULL $$;

-- From here on nothing can be wrapped by a version below `version`: whoever writes so is refused, also who began before.
CREATE FUNCTION keys.fence_platform(version integer) RETURNS void LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = pg_catalog, pg_temp SET lock_timeout = '5s' AS $$
BEGIN
  EXECUTE format('ALTER TABLE keys.tenant_keys DROP CONSTRAINT IF EXISTS platform_floor, ADD CONSTRAINT platform_floor
                    CHECK (wrapped IS NULL OR platform_version >= %s) NOT VALID', version);
END $$;

-- PostgreSQL's own proof that no key is left below the fence, then the versions below it are retired. Fails on one row.
CREATE FUNCTION keys.retire_platform_below(version integer) RETURNS integer LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = pg_catalog, pg_temp SET lock_timeout = '5s' AS $$
DECLARE
  n integer;
BEGIN
  IF NOT EXISTS (SELECT FROM pg_constraint c WHERE c.conrelid = 'keys.tenant_keys'::regclass AND c.conname = 'platform_floor'
                 AND pg_get_constraintdef(c.oid) LIKE '%platform_version >= ' || version || '%') THEN
    RAISE EXCEPTION 'reeve: there is no fence below platform version %', version USING ERRCODE = 'RV007';
  END IF;
  ALTER TABLE keys.tenant_keys VALIDATE CONSTRAINT platform_floor;
  UPDATE keys.platform_keys p SET state = 'retired'
  WHERE p.version < retire_platform_below.version AND p.state IN ('pending', 'decrypt_only');
  GET DIAGNOSTICS n = ROW_COUNT;
  RETURN n;
END $$;

CREATE FUNCTION keys.of_tenant(tenant text) RETURNS SETOF keys.tenant_keys LANGUAGE sql STABLE SECURITY DEFINER
  SET search_path = pg_catalog, pg_temp
  AS $$ SELECT * FROM keys.tenant_keys t WHERE t.tenant_id = of_tenant.tenant ORDER BY t.version $$;

-- Adds the tenant's next version, which seals from now on; the one before it only opens. False when somebody was first.
CREATE FUNCTION keys.add_tenant_key(tenant text, version integer, platform_version integer, wrapped bytea, region text)
  RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM pg_advisory_xact_lock(7263, hashtext(tenant));
  IF add_tenant_key.version <> 1 + greatest(
       (SELECT coalesce(max(t.version), 0) FROM keys.tenant_keys t WHERE t.tenant_id = tenant),
       (SELECT coalesce(max(d.version), 0) FROM keys.destroyed d WHERE d.tenant_id = tenant)) THEN
    RETURN false;
  END IF;
  IF NOT EXISTS (SELECT FROM keys.platform_keys p WHERE p.version = add_tenant_key.platform_version
                 AND p.state = 'primary' FOR SHARE) THEN
    RETURN false;
  END IF;
  UPDATE keys.tenant_keys t SET state = 'retiring' WHERE t.tenant_id = tenant AND t.state = 'active';
  INSERT INTO keys.tenant_keys (tenant_id, version, platform_version, wrapped, region)
  VALUES (tenant, add_tenant_key.version, add_tenant_key.platform_version, add_tenant_key.wrapped, add_tenant_key.region);
  RETURN true;
END $$;

-- The next keys that are not wrapped by `target`, behind (after_tenant, after_version).
CREATE FUNCTION keys.to_rewrap(target integer, after_tenant text, after_version integer, n integer)
  RETURNS SETOF keys.tenant_keys LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
  SELECT * FROM keys.tenant_keys t
  WHERE t.wrapped IS NOT NULL AND t.platform_version <> target AND (t.tenant_id, t.version) > (after_tenant, after_version)
  ORDER BY t.tenant_id, t.version LIMIT n
$$;

-- Compare and swap: what was wrapped or destroyed meanwhile stays as it is.
CREATE FUNCTION keys.rewrap(tenant text, version integer, old bytea, platform_version integer, new bytea) RETURNS boolean
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  UPDATE keys.tenant_keys t SET wrapped = rewrap.new, platform_version = rewrap.platform_version
  WHERE t.tenant_id = tenant AND t.version = rewrap.version AND t.wrapped = rewrap.old;
  RETURN FOUND;
END $$;

-- A version that nothing live uses any more; backups may. It opens, and seals nothing.
CREATE FUNCTION keys.retire(tenant text, version integer) RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  UPDATE keys.tenant_keys t SET state = 'retired'
  WHERE t.tenant_id = tenant AND t.version = retire.version AND t.state = 'retiring';
  RETURN FOUND;
END $$;

-- Destroys a version for good, and writes it into the ledger, also where this keystore does not have it. True where there
-- was a key.
CREATE FUNCTION keys.destroy(tenant text, version integer, actor text, reason text) RETURNS boolean LANGUAGE plpgsql
  SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  INSERT INTO keys.destroyed (tenant_id, version, actor, reason) VALUES (tenant, destroy.version, actor, destroy.reason)
  ON CONFLICT DO NOTHING;
  UPDATE keys.tenant_keys t SET state = 'destroyed', wrapped = NULL
  WHERE t.tenant_id = tenant AND t.version = destroy.version AND t.state <> 'destroyed';
  RETURN FOUND;
END $$;

CREATE FUNCTION keys.ledger() RETURNS SETOF keys.destroyed LANGUAGE sql STABLE SECURITY DEFINER
  SET search_path = pg_catalog, pg_temp AS $$ SELECT * FROM keys.destroyed ORDER BY tenant_id, version $$;

GRANT EXECUTE ON FUNCTION keys.platform(), keys.add_platform(integer, text, bytea, bytea), keys.make_primary(integer),
  keys.wrapped_by(integer), keys.fence_platform(integer), keys.retire_platform_below(integer), keys.of_tenant(text),
  keys.add_tenant_key(text, integer, integer, bytea, text), keys.to_rewrap(integer, text, integer, integer),
  keys.rewrap(text, integer, bytea, integer, bytea), keys.retire(text, integer),
  keys.destroy(text, integer, text, text), keys.ledger() TO reeve_keyring;
RESET ROLE;
