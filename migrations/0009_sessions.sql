-- What `reeve doctor` asks: who holds the oldest transaction of this database? Old snapshots slow every claim. One row.
-- Owned by whoever migrates, who may see other roles' sessions; `unseen` counts those that not even that role may see.
-- Tells a role, a program's name and an age, and never a query's text.
CREATE FUNCTION reeve.oldest_transaction() RETURNS TABLE (holder text, age_secs double precision, unseen bigint)
  LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
  WITH sessions AS MATERIALIZED (
    SELECT * FROM pg_stat_activity a WHERE a.datname = current_database() AND a.pid <> pg_backend_pid())
  SELECT o.holder, extract(epoch FROM clock_timestamp() - o.began)::double precision, u.unseen
  FROM (SELECT count(*) AS unseen FROM sessions a WHERE a.backend_type IS NULL) u
  LEFT JOIN LATERAL (
    SELECT format('pid %s, role %s, application "%s"', a.pid, a.usename, a.application_name) AS holder, a.xact_start AS began
    FROM sessions a WHERE a.xact_start IS NOT NULL AND a.backend_type <> 'autovacuum worker'
    UNION ALL
    SELECT format('prepared transaction "%s" of role %s', p.gid, p.owner), p.prepared
    FROM pg_prepared_xacts p WHERE p.database = current_database()
    ORDER BY 2 LIMIT 1) o ON true
$$;
REVOKE EXECUTE ON FUNCTION reeve.oldest_transaction() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION reeve.oldest_transaction() TO reeve_ops;
