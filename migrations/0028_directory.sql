-- What the directory knows of many tenants by one question. A worker asks it of all that a claim brought: one question
-- each cost a job, where every job is another tenant's, more than all the rest of it. Planned once a session, as in
-- 0027_plans.sql. reeve.tenant_entry stays for programs of the version before.
SET LOCAL ROLE reeve_dispatch;
CREATE FUNCTION reeve.tenant_entries(tenants text[])
  RETURNS TABLE (id text, placement text, region text, state text, moving boolean, epoch integer, url_sealed bytea)
  LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
  SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off
  SET enable_mergejoin = off SET jit = off AS $$
#variable_conflict use_column
BEGIN
  RETURN QUERY
  SELECT t.id, t.placement, t.region, t.state, t.moving, p.epoch, p.url_sealed
  FROM unnest(tenants) AS asked (id) JOIN reeve.tenants t ON t.id = asked.id
  LEFT JOIN reeve.placements p ON p.tenant_id = t.id;
END $$;
GRANT EXECUTE ON FUNCTION reeve.tenant_entries(text[]) TO reeve_worker;
RESET ROLE;
