-- soundness.faults
-- $1: the role that the connection is for. $2: further roles that log in, each for itself.
WITH asked AS (
  SELECT session_user::text AS name, $1::text AS own UNION SELECT current_user::text, $1
  UNION SELECT x.name, x.name FROM unnest($2::text[]) x (name)),
-- They own schema, tables and functions, so no policy would stop whoever logs in as one or makes one a superuser.
owners (name) AS (VALUES ('reeve_owner'), ('reeve_dispatch')),
login AS (SELECT r.oid, a.name, a.own, r.rolsuper FROM asked a JOIN pg_roles r ON r.rolname = a.name),
-- What each is, and what it may become by SET ROLE. A superuser may become anybody, which need not be listed.
reach AS (
  SELECT l.name, l.own, r.oid = l.oid AS itself, r.*
  FROM login l JOIN pg_roles r ON r.oid = l.oid OR (NOT l.rolsuper AND pg_has_role(l.oid, r.oid, 'MEMBER'))),
owned AS (
  SELECT c.relowner AS owner, 'table ' || c.relname AS thing FROM pg_class c
  WHERE c.relnamespace = 'reeve'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f')
  UNION ALL
  SELECT p.proowner, 'function ' || p.proname FROM pg_proc p WHERE p.pronamespace = 'reeve'::regnamespace
  UNION ALL
  SELECT n.nspowner, 'schema ' || n.nspname FROM pg_namespace n WHERE n.nspname = 'reeve'),
attributes AS (
  SELECT x.name, x.own, x.itself, x.rolname, v.attribute
  FROM (SELECT r.name, r.own, r.itself, r.rolname, r.rolsuper, r.rolbypassrls, r.rolcreaterole, r.rolreplication FROM reach r
        UNION ALL
        SELECT o.name, o.name, true, r.rolname, r.rolsuper, r.rolbypassrls, r.rolcreaterole, r.rolreplication
        FROM owners o JOIN pg_roles r ON r.rolname = o.name) x,
       LATERAL (VALUES (x.rolsuper, 'SUPERUSER'), (NOT x.rolsuper AND x.rolbypassrls, 'BYPASSRLS'),
         (NOT x.rolsuper AND x.rolcreaterole, 'CREATEROLE'), (NOT x.rolsuper AND x.rolreplication, 'REPLICATION'))
         v (holds, attribute)
  WHERE v.holds)
SELECT 'attribute' AS fault, a.name AS subject, a.attribute AS object, a.own FROM attributes a WHERE a.itself
UNION
SELECT 'login', o.name, '', o.name FROM owners o JOIN pg_roles r ON r.rolname = o.name WHERE r.rolcanlogin
UNION
SELECT 'owns', r.name, o.thing, r.own FROM reach r JOIN owned o ON o.owner = r.oid WHERE r.itself AND NOT r.rolsuper
UNION
SELECT 'member', r.name, r.rolname::text, r.own FROM reach r
WHERE NOT r.itself AND (EXISTS (SELECT FROM owned o WHERE o.owner = r.oid)
  OR EXISTS (SELECT FROM attributes a WHERE a.name = r.name AND a.rolname = r.rolname)
  OR r.rolname IN ('pg_execute_server_program', 'pg_read_server_files', 'pg_write_server_files'))
UNION
SELECT 'foreign', r.name, r.rolname::text, r.own FROM reach r
WHERE r.rolname IN ('reeve_app', 'reeve_worker', 'reeve_scheduler', 'reeve_ops') AND r.rolname <> r.own AND NOT r.rolsuper
UNION
SELECT 'stranger', l.name, '', l.own FROM login l
WHERE l.name = current_user AND NOT l.rolsuper
  AND NOT coalesce((SELECT pg_has_role(l.oid, o.oid, 'USAGE') FROM pg_roles o WHERE o.rolname = l.own), false)
UNION
SELECT 'unguarded', c.relname::text, CASE WHEN c.relrowsecurity THEN 'FORCE' ELSE 'ENABLE' END, ''
FROM pg_class c
WHERE c.relnamespace = 'reeve'::regnamespace AND c.relkind IN ('r', 'p') AND NOT (c.relrowsecurity AND c.relforcerowsecurity)
  AND (c.relname IN ('tenants', 'flag_overrides') OR EXISTS (SELECT FROM pg_policy p WHERE p.polrelid = c.oid)
       OR EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname = 'tenant_id' AND NOT a.attisdropped))
UNION
SELECT 'unpinned', p.oid::regprocedure::text,
       coalesce((SELECT c FROM unnest(p.proconfig) c WHERE c LIKE 'search\_path=%'), ''), ''
FROM pg_proc p
WHERE p.pronamespace = 'reeve'::regnamespace AND p.prosecdef
  -- Only schemas that nobody else can write to, and temporary objects last: left out, they would be looked at first.
  AND NOT EXISTS (SELECT FROM unnest(p.proconfig) c WHERE c ~ '^search_path=("?(pg_catalog|reeve)"?, ?)+"?pg_temp"?$')
ORDER BY 1, 2, 3
