-- The context as a capability: a worker speaks for a tenant only with proof that it holds one of that tenant's jobs now.
--
-- Naming a tenant in a setting is no proof: SQL injected into a handler can do that too. So reeve.claim (0018_claim.sql) gives each job a
-- context, a MAC over job, lease, expiry and tenant under a key that no login role can read, and the policies for
-- reeve_worker ask reeve.held_tenant(), which verifies it, and that the lease is still the current one. What holds then:
--   - a connection of a worker reaches tenants whose jobs this worker holds, and no other, whatever SQL runs on it;
--   - an attempt that lost its lease is fenced by the database, from its next statement on.
-- What does not: SQL injected into a handler may call reeve.claim like the worker itself, and so come to hold the jobs, and
-- the proofs, of tenants that have one ready. It leaves a trace there: the job's attempt, and its lease.
--
-- The app is not bound so. It speaks for all its tenants by right, and names one (reeve.tenant()).
--
-- The setting reeve.context is "kind/job/lease token/expiry/kid/mac[/mac2]", each part of a fixed width, so that taking it
-- apart costs next to nothing; a regular expression over it cost more than all the rest. The tenant stands in
-- reeve.tenant_id and is covered by the MAC. Kind j is a job's; s is a session's, which an operator opens for one tenant
-- (reeve.open_session), recorded, for minutes. mac2 is for a dedicated database, whose key is its own.
SET LOCAL ROLE reeve_owner;

-- Off: claims give no proof, and the worker's policies believe the setting alone, as they did before. For measuring, and
-- for a way out.
ALTER TABLE reeve.settings ADD COLUMN context_verified boolean NOT NULL DEFAULT true;

-- Its rows are being moved to another database: its jobs wait.
ALTER TABLE reeve.tenants ADD COLUMN moving boolean NOT NULL DEFAULT false;

-- What the flag limit.running_max says (0017_limits.sql), where running_max says nothing; NULL is no cap.
ALTER TABLE reeve.tenants ADD COLUMN running_max_by_flag integer CHECK (running_max_by_flag >= 0);

-- How long one attempt may run, copied from kinds.rs: a context outlives it by a little.
ALTER TABLE reeve.kinds ADD COLUMN budget_secs integer NOT NULL DEFAULT 600 CHECK (budget_secs BETWEEN 1 AND 86400);

-- HMAC-SHA256 (RFC 2104) with the key already in its two padded forms, since that is all that is ever needed of it.
CREATE TABLE reeve.context_keys (
  kid        integer PRIMARY KEY,
  inner_pad  bytea NOT NULL CHECK (octet_length(inner_pad) = 64),
  outer_pad  bytea NOT NULL CHECK (octet_length(outer_pad) = 64),
  created_at timestamptz NOT NULL DEFAULT now()
);
GRANT SELECT, INSERT, DELETE ON reeve.context_keys TO reeve_dispatch;

-- The key of each tenant's dedicated database, so that a claim can make a context that holds there.
CREATE TABLE reeve.placement_keys (
  tenant_id  text COLLATE "C" PRIMARY KEY,
  inner_pad  bytea NOT NULL CHECK (octet_length(inner_pad) = 64),
  outer_pad  bytea NOT NULL CHECK (octet_length(outer_pad) = 64)
);
ALTER TABLE reeve.placement_keys ENABLE ROW LEVEL SECURITY;
ALTER TABLE reeve.placement_keys FORCE ROW LEVEL SECURITY;
CREATE POLICY dispatch ON reeve.placement_keys TO reeve_dispatch USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, UPDATE, DELETE ON reeve.placement_keys TO reeve_dispatch;

-- Whose database this is: one row in a dedicated one, none in the shared one. The epoch is raised by each move, so that a
-- copy that was left behind, or restored, is not taken for the tenant's database.
CREATE TABLE reeve.identity (
  tenant_id  text COLLATE "C" PRIMARY KEY,
  singleton  boolean NOT NULL DEFAULT true UNIQUE CHECK (singleton),
  region     text NOT NULL CHECK (region ~ '^[a-z0-9-]{1,32}$'),
  epoch      integer NOT NULL CHECK (epoch >= 1),
  inner_pad  bytea NOT NULL CHECK (octet_length(inner_pad) = 64),
  outer_pad  bytea NOT NULL CHECK (octet_length(outer_pad) = 64)
);
ALTER TABLE reeve.identity ENABLE ROW LEVEL SECURITY;
ALTER TABLE reeve.identity FORCE ROW LEVEL SECURITY;
CREATE POLICY dispatch ON reeve.identity TO reeve_dispatch USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, UPDATE, DELETE ON reeve.identity TO reeve_dispatch;

SET LOCAL ROLE reeve_dispatch;

-- 64 bytes: a key of 32 and zeros, each byte XOR pad.
CREATE FUNCTION reeve.padded_key(key bytea, pad integer) RETURNS bytea LANGUAGE sql IMMUTABLE STRICT
  BEGIN ATOMIC
  SELECT string_agg(set_byte('\x00'::bytea, 0, (CASE WHEN i < octet_length(key) THEN get_byte(key, i) ELSE 0 END) # pad),
                    ''::bytea ORDER BY i)
  FROM generate_series(0, 63) i;
  END;

CREATE FUNCTION reeve.add_context_key() RETURNS integer LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  -- Three UUIDs carry 366 bits of the server's strong random generator.
  key bytea := sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()));
  made integer;
BEGIN
  INSERT INTO reeve.context_keys AS k (kid, inner_pad, outer_pad)
  SELECT coalesce(max(x.kid), 0) + 1, reeve.padded_key(key, 54), reeve.padded_key(key, 92) FROM reeve.context_keys x
  RETURNING k.kid INTO made;
  RETURN made;
END $$;
SELECT reeve.add_context_key();

-- All of a context but its MACs: 92 characters.
CREATE FUNCTION reeve.context_head(kind text, job uuid, token uuid, exp bigint, kid integer) RETURNS text
  LANGUAGE sql STABLE PARALLEL SAFE
  RETURN kind || '/' || job || '/' || token || '/' || lpad(exp::text, 10, '0') || '/' || lpad(kid::text, 5, '0');

-- Parsed bodies, so that they are inlined. The tenant stands last: it alone has no fixed width.
CREATE FUNCTION reeve.context_mac(inner_pad bytea, outer_pad bytea, head text, tenant text) RETURNS text
  LANGUAGE sql IMMUTABLE PARALLEL SAFE
  RETURN encode(sha256(outer_pad || sha256(inner_pad || convert_to('reeve/context/v1/' || head || '/' || tenant, 'UTF8'))), 'hex');

-- The tenant that this transaction speaks for with proof, or NULL when it names none. In policies for reeve_worker, as
-- (SELECT reeve.held_tenant()): once a statement. One query for key and lease together, since each costs a call. In a
-- dedicated database there are no leases: there it is MAC, time and whose database it is.
--   RV011 forged, or another tenant's   RV012 past its time   RV013 the lease is no longer held   RV014 none
CREATE FUNCTION reeve.held_tenant() RETURNS text LANGUAGE plpgsql STABLE SECURITY DEFINER
  SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  tenant text := nullif(current_setting('reeve.tenant_id', true), '') COLLATE "C";
  context text := current_setting('reeve.context', true);
  f record;
BEGIN
  IF tenant IS NULL THEN
    RETURN NULL;
  END IF;
  IF (context LIKE '_/________-____-____-____-____________/________-____-____-____-____________/__________/_____/%'
      AND length(context) IN (157, 222)) IS NOT TRUE THEN
    IF NOT (SELECT s.context_verified FROM reeve.settings s) THEN
      RETURN tenant;
    ELSIF coalesce(context, '') = '' THEN
      RAISE EXCEPTION 'reeve: this transaction names a tenant without proof' USING ERRCODE = 'RV014',
        HINT = 'A worker sets reeve.context to what the claim of a job gave it.';
    END IF;
    RAISE EXCEPTION 'reeve: the proof of this transaction''s tenant is none of ours' USING ERRCODE = 'RV011';
  END IF;
  -- What does not cast is none of ours either, and is refused by the cast.
  SELECT i.tenant_id AS home, coalesce(i.inner_pad, k.inner_pad) AS inner_pad, coalesce(i.outer_pad, k.outer_pad) AS outer_pad,
         j.tenant_id AS held_of
  INTO f FROM (VALUES (substr(context, 3, 36)::uuid, substr(context, 40, 36)::uuid, substr(context, 88, 5)::integer)) c (job, token, kid)
  LEFT JOIN reeve.identity i ON true
  LEFT JOIN reeve.context_keys k ON k.kid = c.kid
  LEFT JOIN reeve.jobs j ON j.id = c.job AND j.lease_token = c.token;
  -- Hashed before they are compared, so that the time of the comparison tells nothing of the right one. No such key, or
  -- no MAC for this database: NULL or '', which differs.
  IF f.home <> tenant OR sha256(convert_to(reeve.context_mac(f.inner_pad, f.outer_pad, left(context, 92), tenant), 'UTF8'))
     IS DISTINCT FROM sha256(convert_to(substr(context, CASE WHEN f.home IS NULL THEN 94 ELSE 159 END, 64), 'UTF8')) THEN
    RAISE EXCEPTION 'reeve: the proof of this transaction''s tenant is forged, or of another tenant' USING ERRCODE = 'RV011';
  END IF;
  IF substr(context, 77, 10)::bigint < extract(epoch FROM clock_timestamp()) THEN
    RAISE EXCEPTION 'reeve: the proof of this transaction''s tenant is past its time' USING ERRCODE = 'RV012';
  END IF;
  IF f.held_of IS DISTINCT FROM tenant AND f.home IS NULL AND left(context, 1) <> 's' THEN
    RAISE EXCEPTION 'reeve: the job''s lease is no longer held' USING ERRCODE = 'RV013';
  END IF;
  RETURN tenant;
END $$;
GRANT EXECUTE ON FUNCTION reeve.held_tenant() TO reeve_worker;

-- An operator's way into one tenant's rows by the worker's program, which needs both logins: this one says who and why,
-- and has no right to the rows; the worker's has the right, and no context. Returns the context.
CREATE FUNCTION reeve.open_session(tenant text, actor text, reason text, minutes integer DEFAULT 5) RETURNS text
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  t reeve.tenants := reeve.require_tenant(tenant);
  session uuid := reeve.new_id();
  nobody CONSTANT uuid := '00000000-0000-0000-0000-000000000000';
  exp bigint := extract(epoch FROM clock_timestamp())::bigint + minutes * 60;
  made text;
BEGIN
  IF (minutes BETWEEN 1 AND 60) IS NOT TRUE THEN
    RAISE EXCEPTION 'reeve: a session lasts 1 to 60 minutes, not %', coalesce(minutes::text, 'NULL') USING ERRCODE = 'RV005';
  END IF;
  IF coalesce(btrim(reason), '') = '' THEN
    RAISE EXCEPTION 'reeve: a session needs a reason' USING ERRCODE = 'RV005';
  END IF;
  PERFORM reeve.audit_append(t.id, actor, 'session.opened', 'session:' || session, reason, '{}', NULL, NULL, NULL);
  SELECT concat_ws('/', h.head, reeve.context_mac(k.inner_pad, k.outer_pad, h.head, t.id),
                   reeve.context_mac(p.inner_pad, p.outer_pad, h.head, t.id))
  INTO STRICT made FROM reeve.context_keys k LEFT JOIN reeve.placement_keys p ON p.tenant_id = t.id
  CROSS JOIN LATERAL (SELECT reeve.context_head('s', session, nobody, exp, k.kid) AS head) h
  ORDER BY k.kid DESC LIMIT 1;
  RETURN made;
END $$;
GRANT EXECUTE ON FUNCTION reeve.open_session(text, text, text, integer) TO reeve_ops;

-- A new key for contexts made from now on. Those under the one before stay good until their time; older ones do not.
CREATE FUNCTION reeve.rotate_context_key(actor text, reason text) RETURNS integer LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  made integer;
BEGIN
  -- One at a time: two would both take the next number.
  PERFORM pg_advisory_xact_lock(7263, 2);
  DELETE FROM reeve.context_keys k WHERE k.kid <> (SELECT max(x.kid) FROM reeve.context_keys x);
  made := reeve.add_context_key();
  PERFORM reeve.audit_append('-', actor, 'key.context_rotated', 'context_key:' || made, reason, '{}', NULL, NULL, NULL);
  RETURN made;
END $$;
GRANT EXECUTE ON FUNCTION reeve.rotate_context_key(text, text) TO reeve_ops;

-- The worker's doors, which believed the setting until now.
CREATE OR REPLACE FUNCTION reeve.audit(actor text, action text, target text, reason text DEFAULT NULL,
                                       fields text[] DEFAULT '{}', job_id uuid DEFAULT NULL, attempt integer DEFAULT NULL,
                                       trace_id text DEFAULT NULL, source_ip_hash bytea DEFAULT NULL) RETURNS text
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  tenant text := reeve.held_tenant();
BEGIN
  IF tenant IS NULL THEN
    RAISE EXCEPTION 'reeve: no tenant context in this transaction' USING ERRCODE = 'RV001';
  END IF;
  PERFORM reeve.audit_append_many(ARRAY[ROW(tenant, actor, action, target, reason, fields, job_id, attempt, trace_id,
                                            source_ip_hash)::reeve.audit_entry]);
  RETURN tenant;
END $$;

CREATE OR REPLACE FUNCTION reeve.delivery_is_foreign(delivery uuid) RETURNS boolean LANGUAGE sql STABLE SECURITY DEFINER
  SET search_path = pg_catalog, pg_temp AS $$
  SELECT EXISTS (SELECT FROM reeve.webhook_deliveries d WHERE d.id = delivery AND d.tenant_id <> (SELECT reeve.held_tenant()))
$$;

-- A duty's question of what reeve.flag answers to the app.
CREATE FUNCTION reeve.held_flag(name text) RETURNS jsonb LANGUAGE plpgsql STABLE SECURITY DEFINER
  SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF reeve.held_tenant() IS NULL THEN
    RAISE EXCEPTION 'reeve: no tenant context in this transaction' USING ERRCODE = 'RV001';
  END IF;
  RETURN reeve.flag(name);
END $$;
GRANT EXECUTE ON FUNCTION reeve.held_flag(text) TO reeve_worker;
REVOKE EXECUTE ON FUNCTION reeve.flag(text) FROM reeve_worker;

SET LOCAL ROLE reeve_owner;

-- The same policies as before, each split in two: the app's believe the setting, the worker's ask for proof.
DO $$
DECLARE
  t text;
  own text;
BEGIN
  FOREACH t IN ARRAY ARRAY['tenants', 'jobs', 'job_attempts', 'job_history', 'audit_log', 'audit_bodies'] LOOP
    own := CASE t WHEN 'tenants' THEN 'id' ELSE 'tenant_id' END;
    EXECUTE format('ALTER POLICY %I ON reeve.%I TO reeve_app', CASE t WHEN 'tenants' THEN 'own_row' ELSE 'own_rows' END, t);
    EXECUTE format('CREATE POLICY held_rows ON reeve.%I FOR SELECT TO reeve_worker USING (%I = (SELECT reeve.held_tenant()))',
                   t, own);
  END LOOP;
  FOREACH t IN ARRAY ARRAY['webhook_endpoints', 'webhook_secrets', 'webhook_events', 'webhook_deliveries', 'webhook_attempts']
  LOOP
    EXECUTE format('ALTER POLICY tenant_guard ON reeve.%I TO reeve_app', t);
    EXECUTE format('CREATE POLICY held_guard ON reeve.%I AS RESTRICTIVE TO reeve_worker
                    USING (tenant_id = (SELECT reeve.held_tenant())) WITH CHECK (tenant_id = (SELECT reeve.held_tenant()))', t);
  END LOOP;
END $$;

RESET ROLE;
