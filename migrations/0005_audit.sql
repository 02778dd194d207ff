-- The audit log: who did what to which tenant's things, and why. Append-only for everybody, its writers included.
SET LOCAL ROLE reeve_owner;

CREATE TABLE reeve.audit_log (
  id             uuid PRIMARY KEY,
  -- '-' stands for the platform itself: acts that concern no single tenant.
  tenant_id      text COLLATE "C" NOT NULL,
  at             timestamptz NOT NULL DEFAULT clock_timestamp(),
  actor          text NOT NULL CHECK (length(actor) BETWEEN 1 AND 200),
  action         text NOT NULL CHECK (action ~ '^[a-z_]+(\.[a-z_]+)+$'),
  target         text NOT NULL CHECK (length(target) <= 200),
  reason         text CHECK (length(reason) <= 2000),
  -- Names of changed fields. Never their values: a log of secrets would be one more place to steal them from.
  fields         text[] NOT NULL DEFAULT '{}',
  job_id         uuid,
  attempt        integer,
  trace_id       text,
  source_ip_hash bytea
);
CREATE INDEX audit_log_tenant ON reeve.audit_log (tenant_id, at);

ALTER TABLE reeve.audit_log ENABLE ROW LEVEL SECURITY;
ALTER TABLE reeve.audit_log FORCE ROW LEVEL SECURITY;
CREATE POLICY own_rows ON reeve.audit_log FOR SELECT TO reeve_app, reeve_worker
  USING (tenant_id = (SELECT reeve.tenant()));
CREATE POLICY append ON reeve.audit_log FOR INSERT TO reeve_dispatch WITH CHECK (true);
CREATE POLICY ops_read ON reeve.audit_log FOR SELECT TO reeve_ops USING (true);
GRANT SELECT ON reeve.audit_log TO reeve_app, reeve_worker, reeve_ops;
GRANT INSERT ON reeve.audit_log TO reeve_dispatch;

CREATE FUNCTION reeve.refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'reeve: % is append-only', TG_TABLE_NAME USING ERRCODE = 'RV010';
END $$;
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON reeve.audit_log
  FOR EACH STATEMENT EXECUTE FUNCTION reeve.refuse_change();

SET LOCAL ROLE reeve_dispatch;

-- Ids that sort by time (RFC 9562, version 7): new rows land together in the index.
CREATE FUNCTION reeve.new_id() RETURNS uuid LANGUAGE sql VOLATILE PARALLEL SAFE
  -- A parsed body, not a string: its names are resolved here and now, so it needs no search_path and can be inlined.
  RETURN encode(set_bit(set_bit(overlay(uuid_send(gen_random_uuid())
    PLACING substring(int8send((extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3) FROM 1 FOR 6),
    52, 1), 53, 1), 'hex')::uuid;
GRANT EXECUTE ON FUNCTION reeve.new_id() TO reeve_app, reeve_worker;

CREATE FUNCTION reeve.audit_append(tenant_id text, actor text, action text, target text, reason text,
                                   fields text[], job_id uuid, attempt integer, trace_id text) RETURNS void
  LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
  INSERT INTO reeve.audit_log (id, tenant_id, actor, action, target, reason, fields, job_id, attempt, trace_id)
  VALUES (reeve.new_id(), tenant_id, actor, action, target, left(reason, 2000), coalesce(fields, '{}'), job_id,
          attempt, trace_id)
$$;

-- The worker's door: it may write of the tenant whose scope is open, and of no other.
CREATE FUNCTION reeve.audit(actor text, action text, target text, reason text DEFAULT NULL,
                            fields text[] DEFAULT '{}', job_id uuid DEFAULT NULL, attempt integer DEFAULT NULL,
                            trace_id text DEFAULT NULL) RETURNS text
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  tenant text := reeve.tenant();
BEGIN
  IF tenant IS NULL THEN
    RAISE EXCEPTION 'reeve: no tenant context in this transaction' USING ERRCODE = 'RV001';
  END IF;
  PERFORM reeve.audit_append(tenant, actor, action, target, reason, fields, job_id, attempt, trace_id);
  RETURN tenant;
END $$;
GRANT EXECUTE ON FUNCTION reeve.audit(text, text, text, text, text[], uuid, integer, text) TO reeve_worker;

RESET ROLE;
