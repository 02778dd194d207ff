-- The ledger of destroyed keys, as the control database has it. The keystore (migrations/keys/) has its own; a worker makes
-- the two equal before it opens anything, so that neither database brings a destroyed key back when it is restored.
-- It is kept when a tenant is erased: it is what the erasure of their backups rests on, and holds an id and a number.
SET LOCAL ROLE reeve_owner;
CREATE TABLE reeve.destroyed_keys (
  tenant_id    text COLLATE "C" NOT NULL,
  version      integer NOT NULL CHECK (version > 0),
  destroyed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  actor        text NOT NULL,
  reason       text NOT NULL,
  PRIMARY KEY (tenant_id, version)
);
ALTER TABLE reeve.destroyed_keys ENABLE ROW LEVEL SECURITY;
ALTER TABLE reeve.destroyed_keys FORCE ROW LEVEL SECURITY;
CREATE POLICY dispatch ON reeve.destroyed_keys TO reeve_dispatch USING (true) WITH CHECK (true);
GRANT SELECT, INSERT ON reeve.destroyed_keys TO reeve_dispatch;

SET LOCAL ROLE reeve_dispatch;
-- What a worker reads at start. Ids and numbers, no key.
CREATE FUNCTION reeve.destroyed_keys() RETURNS TABLE (tenant_id text, version integer, actor text, reason text)
  LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
  SELECT d.tenant_id, d.version, d.actor, d.reason FROM reeve.destroyed_keys d ORDER BY d.tenant_id, d.version
$$;
GRANT EXECUTE ON FUNCTION reeve.destroyed_keys() TO reeve_worker;

-- Writes down that keys are destroyed, with an audit entry for each that was not known to be. How many were not.
CREATE FUNCTION reeve.record_destroyed(tenants text[], versions integer[], actors text[], reasons text[]) RETURNS integer
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  entries reeve.audit_entry[];
BEGIN
  WITH added AS (
    INSERT INTO reeve.destroyed_keys (tenant_id, version, actor, reason)
    SELECT * FROM unnest(tenants, versions, actors, reasons)
    ON CONFLICT DO NOTHING RETURNING tenant_id, version, actor, reason)
  SELECT array_agg(ROW(a.tenant_id, a.actor, 'key.destroyed', 'key:' || a.version, a.reason, '{}', NULL, NULL, NULL,
                       NULL)::reeve.audit_entry ORDER BY a.tenant_id, a.version)
  INTO entries FROM added a;
  IF entries IS NOT NULL THEN
    PERFORM reeve.audit_append_many(entries);
  END IF;
  RETURN coalesce(cardinality(entries), 0);
END $$;
GRANT EXECUTE ON FUNCTION reeve.record_destroyed(text[], integer[], text[], text[]) TO reeve_worker;

-- What an operator did with keys, of one tenant or of the platform (`-`). Written before the act: an act that then fails is
-- on record as begun.
CREATE FUNCTION reeve.record_key_act(tenant text, actor text, action text, target text, reason text) RETURNS void
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF (action ~ '^key\.[a-z_]{1,40}$') IS NOT TRUE OR length(trim(reason)) = 0 OR reason IS NULL OR length(target) > 200 THEN
    RAISE EXCEPTION 'reeve: an act on keys is named key.…, and has a reason' USING ERRCODE = 'RV005';
  END IF;
  PERFORM reeve.audit_append(tenant, actor, action, target, reason, '{}', NULL, NULL, NULL);
END $$;
GRANT EXECUTE ON FUNCTION reeve.record_key_act(text, text, text, text, text) TO reeve_ops;
RESET ROLE;
