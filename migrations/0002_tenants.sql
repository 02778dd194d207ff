-- Tenants, the settings of this installation, and the one function that says which tenant a transaction speaks for.
SET LOCAL ROLE reeve_owner;

-- One row: what differs between installations and must be known inside the database.
CREATE TABLE reeve.settings (
  singleton        boolean PRIMARY KEY DEFAULT true CHECK (singleton),
  -- A setting of the app's own (such as app.tenant_id) that also names the tenant when the app enqueues.
  app_context_setting text CHECK (app_context_setting ~ '^[a-z_][a-z0-9_]*\.[a-z_][a-z0-9_]*$'),
  default_region   text NOT NULL DEFAULT 'default' CHECK (default_region ~ '^[a-z0-9-]{1,32}$')
);
INSERT INTO reeve.settings DEFAULT VALUES;
GRANT SELECT ON reeve.settings TO reeve_dispatch, reeve_worker, reeve_scheduler, reeve_ops;

-- The tenant that this transaction speaks for, or NULL. A setting that was SET LOCAL once reads '' afterwards.
-- STABLE and never IMMUTABLE: an immutable one is frozen into cached plans and then serves another tenant's rows.
CREATE FUNCTION reeve.tenant() RETURNS text LANGUAGE sql STABLE PARALLEL SAFE
  RETURN nullif(current_setting('reeve.tenant_id', true), '') COLLATE "C";
GRANT EXECUTE ON FUNCTION reeve.tenant() TO reeve_dispatch, reeve_app, reeve_worker, reeve_ops;

CREATE TABLE reeve.tenants (
  -- The app's own id, as text. '-' is kept for the platform itself (see audit_log).
  id               text COLLATE "C" PRIMARY KEY
                   CHECK (octet_length(id) BETWEEN 1 AND 64 AND id !~ '[[:cntrl:]]' AND id <> '-'),
  name             text NOT NULL CHECK (length(name) BETWEEN 1 AND 200),
  placement        text NOT NULL DEFAULT 'shared' CHECK (placement IN ('shared', 'dedicated')),
  region           text NOT NULL DEFAULT 'default' CHECK (region ~ '^[a-z0-9-]{1,32}$'),
  state            text NOT NULL DEFAULT 'active' CHECK (state IN ('active', 'closing', 'closed')),
  weight           integer NOT NULL DEFAULT 1 CHECK (weight BETWEEN 1 AND 100),
  -- Jobs of this tenant that may run at one time in one queue; NULL is no cap.
  running_max      integer CHECK (running_max >= 0),
  paused           boolean NOT NULL DEFAULT false,
  plan             text,
  -- Kinds whose flag is off for this tenant (0012_flags.sql): their jobs wait. NULL, not an empty array, when all are on.
  kinds_off        text[] COLLATE "C" CHECK (cardinality(kinds_off) > 0),
  security_contact text,
  locale           text NOT NULL DEFAULT 'en',
  time_zone        text NOT NULL DEFAULT 'UTC',
  created_at       timestamptz NOT NULL DEFAULT now()
);
ALTER TABLE reeve.tenants ENABLE ROW LEVEL SECURITY;
ALTER TABLE reeve.tenants FORCE ROW LEVEL SECURITY;
CREATE POLICY own_row ON reeve.tenants FOR SELECT TO reeve_app, reeve_worker USING (id = (SELECT reeve.tenant()));
CREATE POLICY dispatch ON reeve.tenants TO reeve_dispatch USING (true) WITH CHECK (true);
CREATE POLICY ops_read ON reeve.tenants FOR SELECT TO reeve_ops USING (true);
GRANT SELECT ON reeve.tenants TO reeve_app, reeve_worker, reeve_ops;
GRANT SELECT, INSERT, UPDATE ON reeve.tenants TO reeve_dispatch;

SET LOCAL ROLE reeve_dispatch;

-- Which tenant is the caller? reeve.tenant_id first, then the app's own setting. Both set and different is a mismatch.
CREATE FUNCTION reeve.caller_tenant() RETURNS text LANGUAGE plpgsql STABLE SECURITY DEFINER
  SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  own text := reeve.tenant();
  setting text := (SELECT s.app_context_setting FROM reeve.settings s);
  app text;
BEGIN
  IF setting IS NOT NULL THEN
    app := nullif(current_setting(setting, true), '');
    IF own IS NOT NULL AND app IS NOT NULL AND own <> app THEN
      RAISE EXCEPTION 'reeve: the transaction names two tenants: reeve.tenant_id and % differ', setting
        USING ERRCODE = 'RV002', HINT = 'Set one of them, or both to the same tenant.';
    END IF;
  END IF;
  IF own IS NULL AND app IS NULL THEN
    RAISE EXCEPTION 'reeve: no tenant context in this transaction'
      USING ERRCODE = 'RV001',
            HINT = format('Inside the transaction, first: SELECT set_config(%L, ''<tenant>'', true)',
                          coalesce(setting, 'reeve.tenant_id'));
  END IF;
  RETURN coalesce(own, app);
END $$;

-- Told by the app when a workspace is made. Safe to call again: an existing tenant is left as it is.
CREATE FUNCTION reeve.register_tenant(id text, name text, region text DEFAULT NULL) RETURNS text
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
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
  INSERT INTO reeve.tenants AS t (id, name, region)
  VALUES (register_tenant.id, register_tenant.name,
          coalesce(register_tenant.region, (SELECT s.default_region FROM reeve.settings s)))
  ON CONFLICT ON CONSTRAINT tenants_pkey DO NOTHING;
  RETURN register_tenant.id;
END $$;
GRANT EXECUTE ON FUNCTION reeve.register_tenant(text, text, text) TO reeve_app;

-- What a worker must know of a tenant before it opens its scope: where its rows are and whether it lives. No names.
CREATE FUNCTION reeve.tenant_entry(tenant_id text)
  RETURNS TABLE (id text, placement text, region text, state text) LANGUAGE sql STABLE SECURITY DEFINER
  SET search_path = pg_catalog, pg_temp
  AS $$ SELECT t.id, t.placement, t.region, t.state FROM reeve.tenants t WHERE t.id = tenant_entry.tenant_id $$;
GRANT EXECUTE ON FUNCTION reeve.tenant_entry(text) TO reeve_worker;

RESET ROLE;
