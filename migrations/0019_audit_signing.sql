-- What the scheduler needs to sign the audit chains' ends, and no more: numbers, times, classes and hashes, no entry's text.
-- It judges the links from the last checkpoint on by itself (jobs/src/audit/sign.rs); the key stays with it.
SET LOCAL ROLE reeve_dispatch;

-- Tenants after `after` whose log has grown since their last checkpoint, with that checkpoint; all NULL for none yet.
CREATE FUNCTION reeve.audit_moved(after text, n integer)
  RETURNS TABLE (tenant text, head_seq bigint, head_hash bytea, last_seq bigint, last_from_seq bigint, last_hash bytea,
                 last_keeps_until timestamptz, last_at timestamptz, last_signature bytea)
  LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
  SELECT h.tenant_id, h.seq, h.hash, c.seq, c.from_seq, c.hash, c.keeps_until, c.at, c.signature
  FROM reeve.audit_heads h
  LEFT JOIN LATERAL (SELECT * FROM reeve.audit_checkpoints k WHERE k.tenant_id = h.tenant_id
                     ORDER BY k.seq DESC LIMIT 1) c ON true
  WHERE h.tenant_id > audit_moved.after AND h.seq > 0 AND h.seq IS DISTINCT FROM c.seq
  ORDER BY h.tenant_id LIMIT n
$$;

-- The links of one chain after entry `after`, in order. Nothing after a checkpoint is pruned, so there are no stubs.
CREATE FUNCTION reeve.audit_links(tenant text, after bigint, n integer)
  RETURNS TABLE (seq bigint, at timestamptz, class text, content bytea, hash bytea)
  LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
  SELECT l.seq, l.at, l.class, reeve.audit_content(l.actor, l.action, l.target, l.job_id, l.attempt, l.trace_id,
         l.source_ip_hash, l.body_hash), l.hash
  FROM reeve.audit_log l WHERE l.tenant_id = audit_links.tenant AND l.seq > audit_links.after ORDER BY l.seq LIMIT n
$$;
GRANT EXECUTE ON FUNCTION reeve.audit_moved(text, integer), reeve.audit_links(text, bigint, integer),
  reeve.audit_checkpoint(text, bigint, bigint, bytea, timestamptz, timestamptz, bytea) TO reeve_scheduler;

RESET ROLE;
