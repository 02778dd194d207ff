-- doctor.privileges
-- All that decides who may do what in schema reeve, a line each, as the statement that would make it so (or a remark where
-- there is none). Partitions are left out: they come and go, and have a rule of their own. What an owner may do is not
-- listed. Runs with an empty search_path, so that every name is written in full.
WITH relation AS (
  SELECT c.*, format('reeve.%I', c.relname) AS name,
         CASE c.relkind WHEN 'S' THEN 'SEQUENCE' WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW' ELSE 'TABLE' END AS word
  FROM pg_class c
  WHERE c.relnamespace = 'reeve'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f') AND NOT c.relispartition),
routine AS (
  SELECT p.*, format('reeve.%I(%s)', p.proname, pg_get_function_identity_arguments(p.oid)) AS name
  FROM pg_proc p WHERE p.pronamespace = 'reeve'::regnamespace),
own_type AS (
  SELECT t.*, format('reeve.%I', t.typname) AS name FROM pg_type t LEFT JOIN pg_class c ON c.oid = t.typrelid
  WHERE t.typnamespace = 'reeve'::regnamespace AND (t.typtype IN ('d', 'e') OR c.relkind = 'c')),
owners (object, owner) AS (
  SELECT 'SCHEMA reeve', n.nspowner FROM pg_namespace n WHERE n.nspname = 'reeve'
  UNION ALL SELECT r.word || ' ' || r.name, r.relowner FROM relation r
  UNION ALL SELECT 'ROUTINE ' || r.name, r.proowner FROM routine r
  UNION ALL SELECT 'TYPE ' || t.name, t.typowner FROM own_type t),
grants (object, owner, part, grantee, privilege, grantable) AS (
  SELECT 'SCHEMA reeve', n.nspowner, '', a.grantee, a.privilege_type, a.is_grantable
  FROM pg_namespace n, aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) a WHERE n.nspname = 'reeve'
  UNION ALL
  SELECT CASE r.word WHEN 'SEQUENCE' THEN 'SEQUENCE ' ELSE 'TABLE ' END || r.name, r.relowner, '', a.grantee, a.privilege_type,
         a.is_grantable
  FROM relation r, aclexplode(coalesce(r.relacl, acldefault(CASE r.relkind WHEN 'S' THEN 's'::"char" ELSE 'r' END, r.relowner))) a
  UNION ALL
  SELECT 'TABLE ' || r.name, r.relowner, format(' (%I)', c.attname), a.grantee, a.privilege_type, a.is_grantable
  FROM relation r JOIN pg_attribute c ON c.attrelid = r.oid AND NOT c.attisdropped, aclexplode(c.attacl) a
  UNION ALL
  SELECT 'ROUTINE ' || r.name, r.proowner, '', a.grantee, a.privilege_type, a.is_grantable
  FROM routine r, aclexplode(coalesce(r.proacl, acldefault('f', r.proowner))) a
  UNION ALL
  SELECT 'TYPE ' || t.name, t.typowner, '', a.grantee, a.privilege_type, a.is_grantable
  FROM own_type t, aclexplode(coalesce(t.typacl, acldefault('T', t.typowner))) a),
defaults AS (
  SELECT d.*, format('ALTER DEFAULT PRIVILEGES FOR ROLE %I%s', pg_get_userbyid(d.defaclrole),
                     CASE WHEN d.defaclnamespace = 0 THEN '' ELSE ' IN SCHEMA reeve' END) AS start,
         CASE d.defaclobjtype WHEN 'r' THEN 'TABLES' WHEN 'S' THEN 'SEQUENCES' WHEN 'f' THEN 'FUNCTIONS' WHEN 'T' THEN 'TYPES'
                              ELSE 'SCHEMAS' END AS objects
  FROM pg_default_acl d
  WHERE d.defaclnamespace = 'reeve'::regnamespace
    OR d.defaclnamespace = 0 AND pg_get_userbyid(d.defaclrole) IN ('reeve_owner', 'reeve_dispatch'))
SELECT x.line, x.grantee FROM (
  SELECT CASE WHEN u.rolname ~ '^reeve_(owner|dispatch|app|worker|scheduler|ops|breakglass)$' THEN format('ALTER %s OWNER TO %I;', o.object, u.rolname)
              ELSE format('-- %s is owned by whoever migrates', o.object) END AS line, NULL AS grantee
  FROM owners o JOIN pg_roles u ON u.oid = o.owner
  UNION ALL
  SELECT format('GRANT %s%s ON %s TO %s%s;', g.privilege, g.part, g.object, n.name,
                CASE WHEN g.grantable THEN ' WITH GRANT OPTION' ELSE '' END), n.name
  FROM grants g, LATERAL (SELECT CASE g.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(g.grantee)) END) n (name)
  WHERE g.grantee <> g.owner
  UNION ALL
  SELECT format('%s GRANT %s ON %s TO %s;', d.start, a.privilege_type, d.objects, n.name), n.name
  FROM defaults d, aclexplode(d.defaclacl) a,
       LATERAL (SELECT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END) n (name)
  WHERE a.grantee <> d.defaclrole
  UNION ALL
  SELECT format('%s REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;', d.start), NULL
  FROM defaults d
  WHERE d.defaclobjtype = 'f' AND NOT EXISTS (SELECT FROM aclexplode(d.defaclacl) a WHERE a.grantee = 0)
  UNION ALL
  SELECT format('ALTER TABLE %s %s ROW LEVEL SECURITY;', r.name, v.word), NULL
  FROM relation r, LATERAL (VALUES (r.relrowsecurity, 'ENABLE'), (r.relforcerowsecurity, 'FORCE')) v (holds, word)
  WHERE v.holds
  UNION ALL
  SELECT format('CREATE POLICY %I ON %s AS %s FOR %s TO %s%s%s;', p.polname, r.name,
                CASE WHEN p.polpermissive THEN 'PERMISSIVE' ELSE 'RESTRICTIVE' END,
                CASE p.polcmd WHEN 'r' THEN 'SELECT' WHEN 'a' THEN 'INSERT' WHEN 'w' THEN 'UPDATE' WHEN 'd' THEN 'DELETE'
                              ELSE 'ALL' END,
                (SELECT string_agg(CASE t.role WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(t.role)) END, ', '
                                   ORDER BY pg_get_userbyid(t.role) COLLATE "C") FROM unnest(p.polroles) t (role)),
                ' USING (' || pg_get_expr(p.polqual, p.polrelid) || ')',
                ' WITH CHECK (' || pg_get_expr(p.polwithcheck, p.polrelid) || ')'), NULL
  FROM pg_policy p JOIN relation r ON r.oid = p.polrelid
  UNION ALL
  SELECT format('ALTER ROUTINE %s %s;', r.name, v.what), NULL
  FROM routine r, LATERAL (
    SELECT 'SECURITY DEFINER' WHERE r.prosecdef UNION ALL SELECT 'LEAKPROOF' WHERE r.proleakproof
    UNION ALL SELECT 'SET ' || regexp_replace(c, '=', ' = ') FROM unnest(r.proconfig) c) v (what)
  UNION ALL
  -- Volatility is of the body: an IMMUTABLE reeve.tenant() would be frozen into plans and serve another tenant's rows.
  SELECT format('-- body of %s: %s, %s, %s', r.name, l.lanname,
                CASE r.provolatile WHEN 'i' THEN 'immutable' WHEN 's' THEN 'stable' ELSE 'volatile' END,
                md5(r.prosrc || coalesce(pg_get_function_sqlbody(r.oid), ''))), NULL
  FROM routine r JOIN pg_language l ON l.oid = r.prolang
  UNION ALL
  SELECT pg_get_triggerdef(t.oid) || ';', NULL FROM pg_trigger t JOIN relation r ON r.oid = t.tgrelid WHERE NOT t.tgisinternal
  UNION ALL
  SELECT format('ALTER TABLE %s DISABLE TRIGGER %I;', r.name, t.tgname), NULL
  FROM pg_trigger t JOIN relation r ON r.oid = t.tgrelid WHERE t.tgenabled IN ('D', 'R') AND NOT t.tgisinternal) x
ORDER BY x.line COLLATE "C"
