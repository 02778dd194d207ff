-- What keeps the audit chains small and honest: checkpoints, pruning, erasing. The chain itself: 0005_audit.sql.
--
-- A checkpoint says of a tenant's chain "number seq had this hash", signed with a key that the database has not, so that
-- neither a rewritten chain nor a cut tail passes. It covers the entries after the checkpoint before it, and says until
-- when the longest-lived of them is kept. With that, pruning stays verifiable in two steps: an entry past its time leaves a
-- stub (number, time, class, hashes), from which anybody sees that it was due; and when a checkpoint's entries are all past
-- their time their stubs go too, and the two signed hashes around them hold the chain together.
SET LOCAL ROLE reeve_owner;

CREATE TABLE reeve.audit_checkpoints (
  tenant_id   text COLLATE "C" NOT NULL,
  seq         bigint NOT NULL,
  -- The checkpoint before; 0 for the first.
  from_seq    bigint NOT NULL CHECK (from_seq >= 0 AND from_seq < seq),
  hash        bytea NOT NULL CHECK (octet_length(hash) = 32),
  -- NULL: one of its entries is kept as long as the workspace lives.
  keeps_until timestamptz,
  at          timestamptz NOT NULL,
  -- HMAC-SHA256; see `audit::AuditKey`.
  signature   bytea NOT NULL CHECK (octet_length(signature) = 32),
  PRIMARY KEY (tenant_id, seq)
);

CREATE TABLE reeve.audit_stubs (
  tenant_id text COLLATE "C" NOT NULL,
  seq       bigint NOT NULL,
  at        timestamptz NOT NULL,
  class     text NOT NULL,
  content   bytea NOT NULL,
  hash      bytea NOT NULL,
  PRIMARY KEY (tenant_id, seq)
);

ALTER TABLE reeve.audit_checkpoints ENABLE ROW LEVEL SECURITY;
ALTER TABLE reeve.audit_checkpoints FORCE ROW LEVEL SECURITY;
ALTER TABLE reeve.audit_stubs ENABLE ROW LEVEL SECURITY;
ALTER TABLE reeve.audit_stubs FORCE ROW LEVEL SECURITY;
CREATE POLICY dispatch ON reeve.audit_checkpoints TO reeve_dispatch USING (true) WITH CHECK (true);
CREATE POLICY dispatch ON reeve.audit_stubs TO reeve_dispatch USING (true) WITH CHECK (true);
CREATE POLICY ops_read ON reeve.audit_checkpoints FOR SELECT TO reeve_ops USING (true);
CREATE POLICY ops_read ON reeve.audit_stubs FOR SELECT TO reeve_ops USING (true);
GRANT SELECT ON reeve.audit_checkpoints, reeve.audit_stubs TO reeve_ops;
GRANT SELECT, INSERT ON reeve.audit_checkpoints TO reeve_dispatch;
GRANT SELECT, INSERT, DELETE ON reeve.audit_stubs TO reeve_dispatch;
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON reeve.audit_checkpoints
  FOR EACH STATEMENT EXECUTE FUNCTION reeve.refuse_change();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON reeve.audit_stubs
  FOR EACH STATEMENT EXECUTE FUNCTION reeve.refuse_change();

SET LOCAL ROLE reeve_dispatch;

-- At least the months promised, in hours: months and days would depend on the session's time zone. NULL is for ever.
CREATE FUNCTION reeve.audit_keep(class text) RETURNS interval LANGUAGE sql IMMUTABLE PARALLEL SAFE
  RETURN CASE class WHEN '12m' THEN interval '8784 hours' WHEN '24m' THEN interval '17544 hours' END;

-- Stores a signed checkpoint. The signature cannot be judged here; that it continues the last one and tells the truth can.
CREATE FUNCTION reeve.audit_checkpoint(tenant text, from_seq bigint, seq bigint, hash bytea, keeps_until timestamptz,
                                       at timestamptz, signature bytea) RETURNS void LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
BEGIN
  -- Two signers at a time: the second finds that its from_seq is no longer the last.
  PERFORM FROM reeve.audit_heads h WHERE h.tenant_id = tenant FOR UPDATE;
  IF from_seq <> (SELECT coalesce(max(c.seq), 0) FROM reeve.audit_checkpoints c WHERE c.tenant_id = tenant) THEN
    RAISE EXCEPTION 'reeve: tenant % was given another checkpoint meanwhile', tenant USING ERRCODE = 'RV013',
      HINT = 'Run it again.';
  END IF;
  IF NOT EXISTS (SELECT FROM reeve.audit_log l WHERE l.tenant_id = tenant AND l.seq = seq AND l.hash = hash) THEN
    RAISE EXCEPTION 'reeve: entry % of tenant % has another hash than the checkpoint', seq, tenant
      USING ERRCODE = 'RV013', HINT = 'Run reeve audit verify.';
  END IF;
  INSERT INTO reeve.audit_checkpoints (tenant_id, seq, from_seq, hash, keeps_until, at, signature)
  VALUES (tenant, seq, from_seq, hash, keeps_until, at, signature);
END $$;
GRANT EXECUTE ON FUNCTION reeve.audit_checkpoint(text, bigint, bigint, bytea, timestamptz, timestamptz, bytea) TO reeve_ops;

-- Pruning, at most n entries and n checkpoints' stubs. Nothing after a tenant's last checkpoint is touched.
CREATE FUNCTION reeve.audit_prune(n integer) RETURNS TABLE (pruned bigint, stubs_dropped bigint) LANGUAGE plpgsql
  SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM set_config('reeve.audit_removal', 'on', true);
  WITH due AS MATERIALIZED (
    SELECT l.tenant_id, l.seq FROM unnest(ARRAY['12m', '24m']) c (class)
    JOIN reeve.audit_log l ON l.class = c.class AND l.at <= now() - reeve.audit_keep(c.class)
    WHERE l.seq <= (SELECT max(k.seq) FROM reeve.audit_checkpoints k WHERE k.tenant_id = l.tenant_id)
    LIMIT n),
  gone AS (
    DELETE FROM reeve.audit_log l USING due d WHERE l.tenant_id = d.tenant_id AND l.seq = d.seq RETURNING l.*),
  bodies AS (
    DELETE FROM reeve.audit_bodies b USING due d WHERE b.tenant_id = d.tenant_id AND b.seq = d.seq)
  INSERT INTO reeve.audit_stubs (tenant_id, seq, at, class, content, hash)
  SELECT g.tenant_id, g.seq, g.at, g.class, reeve.audit_content(g.actor, g.action, g.target, g.job_id, g.attempt, g.trace_id,
         g.source_ip_hash, g.body_hash), g.hash
  FROM gone g;
  GET DIAGNOSTICS pruned = ROW_COUNT;
  WITH over AS MATERIALIZED (
    SELECT k.tenant_id, k.from_seq, k.seq FROM reeve.audit_checkpoints k
    WHERE k.keeps_until <= now()
      AND EXISTS (SELECT FROM reeve.audit_stubs s WHERE s.tenant_id = k.tenant_id AND s.seq = k.seq)
      AND NOT EXISTS (SELECT FROM reeve.audit_log l
                      WHERE l.tenant_id = k.tenant_id AND l.seq > k.from_seq AND l.seq <= k.seq)
    LIMIT n)
  DELETE FROM reeve.audit_stubs s USING over o
  WHERE s.tenant_id = o.tenant_id AND s.seq > o.from_seq AND s.seq <= o.seq;
  GET DIAGNOSTICS stubs_dropped = ROW_COUNT;
  PERFORM set_config('reeve.audit_removal', 'off', true);
  RETURN NEXT;
END $$;
GRANT EXECUTE ON FUNCTION reeve.audit_prune(integer) TO reeve_scheduler, reeve_ops;

-- Erases the reason and the fields' names of one entry, and says so in the log: a body that is gone without such an entry
-- is found by verifying. Returns whether there was one.
CREATE FUNCTION reeve.audit_erase_body(tenant text, entry bigint, actor text, reason text) RETURNS boolean
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  erased bigint;
BEGIN
  PERFORM set_config('reeve.audit_removal', 'on', true);
  DELETE FROM reeve.audit_bodies b WHERE b.tenant_id = tenant AND b.seq = entry;
  GET DIAGNOSTICS erased = ROW_COUNT;
  PERFORM set_config('reeve.audit_removal', 'off', true);
  IF erased = 0 THEN
    RETURN false;
  END IF;
  PERFORM reeve.audit_append(tenant, actor, 'audit.body_erased', 'audit:' || entry, reason, '{}', NULL, NULL, NULL);
  RETURN true;
END $$;
GRANT EXECUTE ON FUNCTION reeve.audit_erase_body(text, bigint, text, text) TO reeve_ops;

RESET ROLE;
