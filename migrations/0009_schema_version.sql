-- What a program asks at start: does this database have the schema I was built for?
-- Owned by whoever migrates, since the bookkeeping table is theirs.
CREATE FUNCTION reeve.schema_version() RETURNS bigint LANGUAGE sql STABLE SECURITY DEFINER
  SET search_path = pg_catalog, pg_temp
  AS $$ SELECT max(version) FROM public._reeve_migrations WHERE success $$;
REVOKE EXECUTE ON FUNCTION reeve.schema_version() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION reeve.schema_version() TO reeve_app, reeve_worker, reeve_scheduler, reeve_ops;
