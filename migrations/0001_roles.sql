-- Roles: who may do what. Run as the database's administrator; every later file runs as reeve_owner.
--
-- Roles belong to the cluster, not to the database, so each is made only when it is missing: two databases of one
-- cluster share them. None is a superuser, none bypasses row-level security, and the two that own things cannot log in.
--   reeve_owner      owns schema, tables and partitions; tables force row-level security, so it too sees no tenant's rows
--   reeve_dispatch   owns the narrow SECURITY DEFINER functions; has a policy of its own on the queue's tables only
--   reeve_app        the web app: enqueues, emits, registers tenants, reads its own tenant's jobs
--   reeve_worker     claims and settles through functions; tenant rows under row-level security
--   reeve_scheduler  calls the maintenance functions; sees no row
--   reeve_ops        reads the queue; acts through audited functions
-- Passwords are the operator's: none is set here.
DO $$
DECLARE
  role_name text;
  login text;
BEGIN
  FOREACH role_name IN ARRAY ARRAY['reeve_owner', 'reeve_dispatch', 'reeve_app', 'reeve_worker', 'reeve_scheduler',
                                   'reeve_ops'] LOOP
    CONTINUE WHEN EXISTS (SELECT FROM pg_roles WHERE rolname = role_name);
    login := CASE WHEN role_name IN ('reeve_owner', 'reeve_dispatch') THEN 'NOLOGIN' ELSE 'LOGIN' END;
    BEGIN
      -- NOINHERIT: the owner may become reeve_dispatch, but passes none of its policies meanwhile.
      EXECUTE format('CREATE ROLE %I %s NOINHERIT NOSUPERUSER NOBYPASSRLS NOCREATEDB NOCREATEROLE', role_name, login);
    EXCEPTION WHEN duplicate_object OR unique_violation THEN
      NULL; -- another database of the cluster is being migrated at this moment
    END;
  END LOOP;
  FOREACH role_name IN ARRAY ARRAY['reeve_owner', 'reeve_dispatch'] LOOP
    IF NOT pg_has_role(current_user, role_name, 'MEMBER') THEN
      EXECUTE format('GRANT %I TO %I', role_name, current_user);
    END IF;
  END LOOP;
  IF NOT pg_has_role('reeve_owner', 'reeve_dispatch', 'MEMBER') THEN
    GRANT reeve_dispatch TO reeve_owner;
  END IF;
END $$;

CREATE SCHEMA reeve AUTHORIZATION reeve_owner;
REVOKE ALL ON SCHEMA reeve FROM PUBLIC;
GRANT USAGE ON SCHEMA reeve TO reeve_app, reeve_worker, reeve_scheduler, reeve_ops;
GRANT USAGE, CREATE ON SCHEMA reeve TO reeve_dispatch;

-- PostgreSQL lets everybody execute a new function. Here a function is closed until it is granted by name.
ALTER DEFAULT PRIVILEGES FOR ROLE reeve_owner REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;
ALTER DEFAULT PRIVILEGES FOR ROLE reeve_dispatch REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;

-- What a program asks at start: does this database have the schema I was built for? Made first, so that a database on
-- any earlier version can answer. Owned by whoever migrates, since the bookkeeping table is theirs.
CREATE FUNCTION reeve.schema_version() RETURNS bigint LANGUAGE sql STABLE SECURITY DEFINER
  SET search_path = pg_catalog, pg_temp
  AS $$ SELECT max(version) FROM public._reeve_migrations WHERE success $$;
REVOKE EXECUTE ON FUNCTION reeve.schema_version() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION reeve.schema_version() TO reeve_app, reeve_worker, reeve_scheduler, reeve_ops;
