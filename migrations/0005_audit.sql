-- The audit log: who did what to which tenant's things, and why. Append-only for everybody, its writers included.
--
-- The entries of one tenant are a chain: each has a number and a hash over the hash before it and all that it says, so
-- a changed, removed or moved entry shows. What may have to be erased (the reason is free text) is in a second table, and
-- the chain holds only SHA-256 of a random salt and it: erasing the row breaks nothing, and the hash alone tells nothing.
-- Verifying is not done here but in `jobs/src/audit/verify.rs`, from the same bytes: whoever could rewrite the log could
-- rewrite a function as well. Checkpoints, pruning and erasing: 0011_audit_chain.sql.
SET LOCAL ROLE reeve_owner;

CREATE TABLE reeve.audit_log (
  -- '-' stands for the platform itself: acts that concern no single tenant.
  tenant_id      text COLLATE "C" NOT NULL,
  -- 1, 2, 3 … within the tenant, without holes.
  seq            bigint NOT NULL CHECK (seq > 0),
  at             timestamptz NOT NULL,
  class          text NOT NULL CHECK (class IN ('12m', '24m', 'life')),
  actor          text NOT NULL CHECK (length(actor) BETWEEN 1 AND 200),
  action         text NOT NULL CHECK (action ~ '^[a-z_]+(\.[a-z_]+)+$'),
  target         text NOT NULL CHECK (length(target) <= 200),
  job_id         uuid,
  attempt        integer,
  trace_id       text,
  -- HMAC-SHA256 under a key of the tenant's; see `audit::AuditKey::ip_hash`.
  source_ip_hash bytea,
  -- NULL: the entry has neither reason nor fields.
  body_hash      bytea CHECK (octet_length(body_hash) = 32),
  hash           bytea NOT NULL CHECK (octet_length(hash) = 32),
  PRIMARY KEY (tenant_id, seq)
);
CREATE INDEX audit_log_tenant ON reeve.audit_log (tenant_id, at);
CREATE INDEX audit_log_at ON reeve.audit_log (at);

CREATE TABLE reeve.audit_bodies (
  tenant_id text COLLATE "C" NOT NULL,
  seq       bigint NOT NULL,
  salt      bytea NOT NULL,
  reason    text CHECK (length(reason) <= 2000),
  -- Names of changed fields. Never their values: a log of secrets would be one more place to steal them from.
  fields    text[] NOT NULL,
  PRIMARY KEY (tenant_id, seq)
);

-- The end of each chain. Its row is the lock that lets the writers of one tenant pass one at a time.
CREATE TABLE reeve.audit_heads (
  tenant_id text COLLATE "C" PRIMARY KEY,
  seq       bigint NOT NULL,
  hash      bytea NOT NULL
);

ALTER TABLE reeve.audit_log ENABLE ROW LEVEL SECURITY;
ALTER TABLE reeve.audit_log FORCE ROW LEVEL SECURITY;
ALTER TABLE reeve.audit_bodies ENABLE ROW LEVEL SECURITY;
ALTER TABLE reeve.audit_bodies FORCE ROW LEVEL SECURITY;
ALTER TABLE reeve.audit_heads ENABLE ROW LEVEL SECURITY;
ALTER TABLE reeve.audit_heads FORCE ROW LEVEL SECURITY;
CREATE POLICY own_rows ON reeve.audit_log FOR SELECT TO reeve_app, reeve_worker
  USING (tenant_id = (SELECT reeve.tenant()));
CREATE POLICY own_rows ON reeve.audit_bodies FOR SELECT TO reeve_app, reeve_worker
  USING (tenant_id = (SELECT reeve.tenant()));
CREATE POLICY dispatch ON reeve.audit_log TO reeve_dispatch USING (true) WITH CHECK (true);
CREATE POLICY dispatch ON reeve.audit_bodies TO reeve_dispatch USING (true) WITH CHECK (true);
CREATE POLICY dispatch ON reeve.audit_heads TO reeve_dispatch USING (true) WITH CHECK (true);
CREATE POLICY ops_read ON reeve.audit_log FOR SELECT TO reeve_ops USING (true);
CREATE POLICY ops_read ON reeve.audit_bodies FOR SELECT TO reeve_ops USING (true);
CREATE POLICY ops_read ON reeve.audit_heads FOR SELECT TO reeve_ops USING (true);
GRANT SELECT ON reeve.audit_log, reeve.audit_bodies TO reeve_app, reeve_worker, reeve_ops;
GRANT SELECT ON reeve.audit_heads TO reeve_ops;
-- DELETE is for pruning and erasing, and the triggers let nothing else use it.
GRANT SELECT, INSERT, DELETE ON reeve.audit_log, reeve.audit_bodies TO reeve_dispatch;
GRANT SELECT, INSERT, UPDATE ON reeve.audit_heads TO reeve_dispatch;

-- The owner could delete in spite of having no grant, a superuser in spite of everything: this stops both from doing so
-- by mistake. The one way around is that of the functions in 0010, which set what the trigger looks for.
CREATE FUNCTION reeve.refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP = 'DELETE' AND current_user = 'reeve_dispatch' AND current_setting('reeve.audit_removal', true) = 'on' THEN
    RETURN NULL;
  END IF;
  RAISE EXCEPTION 'reeve: % is append-only', TG_TABLE_NAME USING ERRCODE = 'RV010';
END $$;
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON reeve.audit_log
  FOR EACH STATEMENT EXECUTE FUNCTION reeve.refuse_change();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON reeve.audit_bodies
  FOR EACH STATEMENT EXECUTE FUNCTION reeve.refuse_change();

SET LOCAL ROLE reeve_dispatch;

-- Ids that sort by time (RFC 9562, version 7): new rows land together in the index.
CREATE FUNCTION reeve.new_id() RETURNS uuid LANGUAGE sql VOLATILE PARALLEL SAFE
  -- A parsed body, not a string: its names are resolved here and now, so it needs no search_path and can be inlined.
  RETURN encode(set_bit(set_bit(overlay(uuid_send(gen_random_uuid())
    PLACING substring(int8send((extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3) FROM 1 FOR 6),
    52, 1), 53, 1), 'hex')::uuid;
GRANT EXECUTE ON FUNCTION reeve.new_id() TO reeve_app, reeve_worker;

-- One entry, as its writers give it.
CREATE TYPE reeve.audit_entry AS (
  tenant_id text, actor text, action text, target text, reason text, fields text[], job_id uuid, attempt integer,
  trace_id text, source_ip_hash bytea);

-- How long an entry is kept: what concerns keys, and the log itself, as long as the workspace lives. Decided here, so that
-- no writer chooses a short life for its own traces.
CREATE FUNCTION reeve.audit_class(action text) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
  RETURN CASE WHEN action ~ '^(key|audit)\.' OR action ~ '[._]rotated$' THEN 'life'
              WHEN action ~ '^job\.' THEN '12m' ELSE '24m' END;

-- The canonical bytes. A value is its length in four bytes and itself; NULL is the length -1.
CREATE FUNCTION reeve.audit_bytes(value bytea) RETURNS bytea LANGUAGE sql IMMUTABLE PARALLEL SAFE
  RETURN int4send(coalesce(octet_length(value), -1)) || coalesce(value, ''::bytea);
CREATE FUNCTION reeve.audit_bytes(value text) RETURNS bytea LANGUAGE sql IMMUTABLE PARALLEL SAFE
  RETURN reeve.audit_bytes(convert_to(value, 'UTF8'));

CREATE FUNCTION reeve.audit_body_hash(salt bytea, reason text, fields text[]) RETURNS bytea LANGUAGE sql IMMUTABLE
  PARALLEL SAFE
  RETURN sha256(salt || reeve.audit_bytes(reason) || int4send(cardinality(fields)) || coalesce(
    (SELECT string_agg(reeve.audit_bytes(f.name), ''::bytea ORDER BY f.n) FROM unnest(fields) WITH ORDINALITY f (name, n)),
    ''::bytea));

-- All that an entry says and that goes when it is pruned. Number, time and class stay with the stub.
CREATE FUNCTION reeve.audit_content(actor text, action text, target text, job_id uuid, attempt integer, trace_id text,
                                    source_ip_hash bytea, body_hash bytea) RETURNS bytea LANGUAGE sql IMMUTABLE PARALLEL SAFE
  RETURN sha256(reeve.audit_bytes(actor) || reeve.audit_bytes(action) || reeve.audit_bytes(target)
    || reeve.audit_bytes(uuid_send(job_id)) || reeve.audit_bytes(int4send(attempt)) || reeve.audit_bytes(trace_id)
    || reeve.audit_bytes(source_ip_hash) || reeve.audit_bytes(body_hash));

CREATE FUNCTION reeve.audit_link(tenant_id text, seq bigint, at timestamptz, class text, content bytea) RETURNS bytea
  LANGUAGE sql IMMUTABLE PARALLEL SAFE
  RETURN reeve.audit_bytes(tenant_id) || reeve.audit_bytes(int8send(seq))
    || reeve.audit_bytes(int8send((extract(epoch FROM at) * 1000000)::bigint)) || reeve.audit_bytes(class)
    || reeve.audit_bytes(content);

-- The chain itself, as an aggregate over a window: each entry hashes what came out for the one before, in one pass.
CREATE FUNCTION reeve.audit_chain_step(state bytea, head bytea, link bytea) RETURNS bytea LANGUAGE sql IMMUTABLE
  PARALLEL SAFE
  RETURN sha256(reeve.audit_bytes(coalesce(state, head)) || link);
CREATE AGGREGATE reeve.audit_chain(head bytea, link bytea) (SFUNC = reeve.audit_chain_step, STYPE = bytea);

-- The one writer. Takes many entries, of one tenant or several, in their order, and moves each head once: appending one by
-- one in one transaction would leave a version of the head for each entry, and each next one would walk over them all.
-- Heads are locked in the order of the tenants' ids until the transaction ends, so call this as late in it as possible.
CREATE FUNCTION reeve.audit_append_many(entries reeve.audit_entry[]) RETURNS bigint LANGUAGE plpgsql VOLATILE
  SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  written bigint;
  moment timestamptz;
BEGIN
  INSERT INTO reeve.audit_heads AS h (tenant_id, seq, hash)
  SELECT DISTINCT e.tenant_id, 0, decode(repeat('00', 32), 'hex') FROM unnest(entries) e
  WHERE NOT EXISTS (SELECT FROM reeve.audit_heads x WHERE x.tenant_id = e.tenant_id)
  ORDER BY e.tenant_id
  ON CONFLICT ON CONSTRAINT audit_heads_pkey DO NOTHING;
  PERFORM FROM reeve.audit_heads h WHERE h.tenant_id = ANY (ARRAY(SELECT e.tenant_id FROM unnest(entries) e))
  ORDER BY h.tenant_id FOR UPDATE;
  -- After the wait, so that times follow the chain.
  moment := clock_timestamp();
  WITH said AS MATERIALIZED (
    SELECT e.n, e.tenant_id, e.actor, e.action, e.target, left(e.reason, 2000) AS reason, coalesce(e.fields, '{}') AS fields,
           e.job_id, e.attempt, e.trace_id, e.source_ip_hash, reeve.audit_class(e.action) AS class,
           CASE WHEN e.reason IS NOT NULL OR cardinality(e.fields) > 0
                THEN uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()) END AS salt,
           h.hash AS head, h.seq + row_number() OVER (PARTITION BY e.tenant_id ORDER BY e.n) AS seq
    FROM unnest(entries) WITH ORDINALITY e (tenant_id, actor, action, target, reason, fields, job_id, attempt, trace_id,
                                            source_ip_hash, n)
    JOIN reeve.audit_heads h ON h.tenant_id = e.tenant_id),
  committed AS MATERIALIZED (
    SELECT s.*, CASE WHEN s.salt IS NOT NULL THEN reeve.audit_body_hash(s.salt, s.reason, s.fields) END AS body_hash
    FROM said s),
  linked AS MATERIALIZED (
    SELECT c.*, reeve.audit_link(c.tenant_id, c.seq, moment, c.class, reeve.audit_content(
      c.actor, c.action, c.target, c.job_id, c.attempt, c.trace_id, c.source_ip_hash, c.body_hash)) AS link
    FROM committed c),
  chained AS MATERIALIZED (
    SELECT l.*, reeve.audit_chain(l.head, l.link)
                OVER (PARTITION BY l.tenant_id ORDER BY l.seq ROWS UNBOUNDED PRECEDING) AS hash
    FROM linked l),
  bodies AS (
    INSERT INTO reeve.audit_bodies (tenant_id, seq, salt, reason, fields)
    SELECT c.tenant_id, c.seq, c.salt, c.reason, c.fields FROM chained c WHERE c.salt IS NOT NULL),
  heads AS (
    UPDATE reeve.audit_heads h SET seq = l.seq, hash = l.hash
    FROM (SELECT DISTINCT ON (c.tenant_id) c.tenant_id, c.seq, c.hash FROM chained c ORDER BY c.tenant_id, c.seq DESC) l
    WHERE h.tenant_id = l.tenant_id)
  INSERT INTO reeve.audit_log (tenant_id, seq, at, class, actor, action, target, job_id, attempt, trace_id,
                               source_ip_hash, body_hash, hash)
  SELECT c.tenant_id, c.seq, moment, c.class, c.actor, c.action, c.target, c.job_id, c.attempt, c.trace_id,
         c.source_ip_hash, c.body_hash, c.hash
  FROM chained c;
  GET DIAGNOSTICS written = ROW_COUNT;
  RETURN written;
END $$;

CREATE FUNCTION reeve.audit_append(tenant_id text, actor text, action text, target text, reason text,
                                   fields text[], job_id uuid, attempt integer, trace_id text) RETURNS void
  LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
  SELECT reeve.audit_append_many(ARRAY[ROW(tenant_id, actor, action, target, reason, fields, job_id, attempt, trace_id,
                                           NULL)::reeve.audit_entry])
$$;

-- The worker's door: it may write of the tenant whose scope is open, and of no other.
CREATE FUNCTION reeve.audit(actor text, action text, target text, reason text DEFAULT NULL,
                            fields text[] DEFAULT '{}', job_id uuid DEFAULT NULL, attempt integer DEFAULT NULL,
                            trace_id text DEFAULT NULL, source_ip_hash bytea DEFAULT NULL) RETURNS text
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  tenant text := reeve.tenant();
BEGIN
  IF tenant IS NULL THEN
    RAISE EXCEPTION 'reeve: no tenant context in this transaction' USING ERRCODE = 'RV001';
  END IF;
  PERFORM reeve.audit_append_many(ARRAY[ROW(tenant, actor, action, target, reason, fields, job_id, attempt, trace_id,
                                            source_ip_hash)::reeve.audit_entry]);
  RETURN tenant;
END $$;
GRANT EXECUTE ON FUNCTION reeve.audit(text, text, text, text, text[], uuid, integer, text, bytea) TO reeve_worker;

RESET ROLE;
