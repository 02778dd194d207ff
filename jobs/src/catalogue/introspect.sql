-- catalogue.introspect
-- One statement, so that all of it is of one moment. $1: also the schema "reeve".
WITH t AS MATERIALIZED (
  SELECT c.oid, n.nspname, c.relname, c.relkind, c.relrowsecurity, c.relforcerowsecurity, c.relowner, c.relacl
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
  WHERE c.relkind IN ('r', 'p', 'v', 'm') AND NOT c.relispartition
    AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
    AND CASE n.nspname WHEN 'reeve' THEN $1 ELSE true END
    AND n.nspname <> '_reeve' AND (n.nspname, c.relname) <> ('public', '_reeve_migrations')
    AND NOT EXISTS (SELECT FROM pg_depend d
                    WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'))
SELECT jsonb_build_object('database', current_database(), 'tables', coalesce(jsonb_agg(jsonb_build_object(
  'name', jsonb_build_object('schema', t.nspname, 'name', t.relname),
  'kind', CASE t.relkind WHEN 'r' THEN 'table' WHEN 'p' THEN 'partitioned' WHEN 'v' THEN 'view' ELSE 'materialized_view' END,
  'owner', pg_get_userbyid(t.relowner),
  'rls', t.relrowsecurity,
  'rls_forced', t.relforcerowsecurity,
  'partitions', CASE t.relkind WHEN 'p' THEN (SELECT count(*) FROM pg_inherits i WHERE i.inhparent = t.oid) ELSE 0 END,
  'inherits', (SELECT coalesce(jsonb_agg(jsonb_build_object('schema', p.nspname, 'name', p.relname) ORDER BY i.inhseqno), '[]')
               FROM pg_inherits i JOIN t p ON p.oid = i.inhparent WHERE i.inhrelid = t.oid),
  'has_heirs', t.relkind = 'r' AND EXISTS (SELECT FROM pg_inherits i WHERE i.inhparent = t.oid),
  'columns', (
    SELECT coalesce(jsonb_agg(jsonb_build_object(
      'name', a.attname,
      'type', format_type(a.atttypid, a.atttypmod),
      'base', format_type(coalesce(b.base, a.atttypid), NULL),
      'domain', b.base IS NOT NULL,
      'enumeration', coalesce((SELECT jsonb_agg(e.enumlabel ORDER BY e.enumsortorder) FROM pg_enum e
                               WHERE e.enumtypid = coalesce(b.base, a.atttypid)), '[]'),
      'nullable', NOT a.attnotnull AND NOT coalesce(b.not_null, false),
      'generated', a.attgenerated <> '',
      'identity', a.attidentity <> '',
      -- An identity column's sequence needs no grant; one behind a default does.
      'sequence', (SELECT jsonb_build_object('schema', n.nspname, 'name', s.relname)
                   FROM pg_depend o JOIN pg_class s ON s.oid = o.objid AND s.relkind = 'S'
                   JOIN pg_namespace n ON n.oid = s.relnamespace
                   WHERE o.classid = 'pg_class'::regclass AND o.refclassid = 'pg_class'::regclass
                     AND o.refobjid = a.attrelid AND o.refobjsubid = a.attnum AND o.deptype = 'a' LIMIT 1),
      'default', pg_get_expr(d.adbin, d.adrelid)) ORDER BY a.attnum), '[]')
    FROM pg_attribute a
    LEFT JOIN pg_attrdef d ON (d.adrelid, d.adnum) = (a.attrelid, a.attnum)
    -- A domain may stand on another domain.
    LEFT JOIN LATERAL (
      WITH RECURSIVE r AS (
        SELECT y.typbasetype AS base, y.typnotnull AS not_null, 1 AS depth FROM pg_type y
        WHERE y.oid = a.atttypid AND y.typtype = 'd'
        UNION ALL
        SELECT y.typbasetype, y.typnotnull OR r.not_null, r.depth + 1 FROM r JOIN pg_type y ON y.oid = r.base
        WHERE y.typtype = 'd')
      SELECT r.base, r.not_null FROM r ORDER BY r.depth DESC LIMIT 1) b ON true
    WHERE a.attrelid = t.oid AND a.attnum > 0 AND NOT a.attisdropped),
  'primary_key', (
    SELECT coalesce((SELECT jsonb_agg(a.attname ORDER BY k.i) FROM unnest(x.conkey) WITH ORDINALITY k (n, i)
                     JOIN pg_attribute a ON a.attrelid = x.conrelid AND a.attnum = k.n), '[]')
    FROM (SELECT t.oid AS conrelid, (SELECT c.conkey FROM pg_constraint c WHERE c.conrelid = t.oid AND c.contype = 'p')
          AS conkey) x),
  'foreign_keys', (
    SELECT coalesce(jsonb_agg(jsonb_build_object(
      'name', c.conname,
      'columns', (SELECT jsonb_agg(a.attname ORDER BY k.i) FROM unnest(c.conkey) WITH ORDINALITY k (n, i)
                  JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = k.n),
      'table', jsonb_build_object('schema', p.nspname, 'name', p.relname),
      'target', (SELECT jsonb_agg(a.attname ORDER BY k.i) FROM unnest(c.confkey) WITH ORDINALITY k (n, i)
                 JOIN pg_attribute a ON a.attrelid = c.confrelid AND a.attnum = k.n),
      'on_delete', CASE c.confdeltype WHEN 'a' THEN 'no_action' WHEN 'r' THEN 'restrict' WHEN 'c' THEN 'cascade'
                                      WHEN 'n' THEN 'set_null' ELSE 'set_default' END,
      'deferrable', c.condeferrable,
      'validated', c.convalidated) ORDER BY c.conname), '[]')
    FROM pg_constraint c JOIN t p ON p.oid = c.confrelid
    WHERE c.conrelid = t.oid AND c.contype = 'f' AND c.conparentid = 0),
  'indexes', (
    SELECT coalesce(jsonb_agg(jsonb_build_object(
      'name', ic.relname,
      'unique', i.indisunique,
      'partial', i.indpred IS NOT NULL,
      'valid', i.indisvalid,
      -- Up to the first expression, which stands for no column.
      'columns', (SELECT coalesce(jsonb_agg(a.attname ORDER BY k.i), '[]')
                  FROM unnest(i.indkey::int2[]) WITH ORDINALITY k (n, i)
                  JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.n
                  WHERE k.i <= i.indnkeyatts AND k.i < coalesce(
                    (SELECT min(e.i) FROM unnest(i.indkey::int2[]) WITH ORDINALITY e (n, i) WHERE e.n = 0), 1000)),
      'whole', 0 <> ALL (i.indkey::int2[])) ORDER BY ic.relname), '[]')
    FROM pg_index i JOIN pg_class ic ON ic.oid = i.indexrelid WHERE i.indrelid = t.oid),
  'triggers', (SELECT coalesce(jsonb_agg(g.tgname ORDER BY g.tgname), '[]') FROM pg_trigger g
               WHERE g.tgrelid = t.oid AND NOT g.tgisinternal),
  'policies', (
    SELECT coalesce(jsonb_agg(jsonb_build_object(
      'name', p.polname,
      'command', CASE p.polcmd WHEN 'r' THEN 'select' WHEN 'a' THEN 'insert' WHEN 'w' THEN 'update'
                               WHEN 'd' THEN 'delete' ELSE 'all' END,
      'permissive', p.polpermissive,
      'roles', (SELECT jsonb_agg(CASE r WHEN 0 THEN 'public' ELSE pg_get_userbyid(r) END) FROM unnest(p.polroles) r)
      ) ORDER BY p.polname), '[]') FROM pg_policy p WHERE p.polrelid = t.oid),
  -- Who may touch rows besides the owner, and would feel row-level security. By grants on the table or on columns; and
  -- as a member of a predefined role, which has every table without a grant.
  'writers', (
    SELECT coalesce(jsonb_agg(jsonb_build_object(
      'role', CASE g.grantee WHEN 0 THEN 'public' ELSE pg_get_userbyid(g.grantee) END,
      'commands', g.commands,
      'member_of', (SELECT coalesce(jsonb_agg(m.rolname ORDER BY m.rolname), '[]') FROM pg_roles m
                    WHERE g.grantee <> 0 AND m.oid <> g.grantee AND pg_has_role(g.grantee, m.oid, 'USAGE')))
      ORDER BY CASE g.grantee WHEN 0 THEN 'public' ELSE pg_get_userbyid(g.grantee) END), '[]')
    FROM (
      SELECT x.grantee, jsonb_agg(DISTINCT lower(x.privilege_type) ORDER BY lower(x.privilege_type)) AS commands
      FROM (
        SELECT r.grantee, r.privilege_type FROM aclexplode(t.relacl) r
        UNION ALL
        SELECT r.grantee, r.privilege_type FROM pg_attribute a CROSS JOIN LATERAL aclexplode(a.attacl) r
        WHERE a.attrelid = t.oid AND a.attnum > 0 AND NOT a.attisdropped
        UNION ALL
        SELECT p.oid, w.command
        FROM (VALUES ('pg_read_all_data', 'SELECT'), ('pg_write_all_data', 'INSERT'), ('pg_write_all_data', 'UPDATE'),
                     ('pg_write_all_data', 'DELETE')) w (name, command)
        JOIN pg_roles p ON p.rolname = w.name
        WHERE EXISTS (SELECT FROM pg_auth_members m JOIN pg_roles u ON u.oid = m.member
                      WHERE m.roleid = p.oid AND NOT (u.rolsuper OR u.rolbypassrls))) x
      WHERE x.privilege_type IN ('SELECT', 'INSERT', 'UPDATE', 'DELETE')
      GROUP BY x.grantee) g
    LEFT JOIN pg_roles r ON r.oid = g.grantee
    -- A member of the owner counts as the owner.
    WHERE CASE WHEN g.grantee = 0 THEN true ELSE NOT pg_has_role(g.grantee, t.relowner, 'USAGE') END
      -- What lets a role past policies is its own and is not inherited: its members may still feel them.
      AND (NOT coalesce(r.rolsuper OR r.rolbypassrls, false)
           OR EXISTS (SELECT FROM pg_auth_members m JOIN pg_roles u ON u.oid = m.member
                      WHERE m.roleid = g.grantee AND NOT (u.rolsuper OR u.rolbypassrls))))
  ) ORDER BY t.nspname, t.relname), '[]'))
FROM t
