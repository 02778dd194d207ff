-- Break-glass: a login for a time, with which one operator looks at one tenant's rows by hand, and which leaves a trace.
--   ops         request, approve (another login than the one that asked), login (once, by the one that asked), close
--   scheduler   expire, finish
--   the login   begin, once a session; before it, and after the time is over, every policy shows nothing
--
--   requested ──► approved ──► open ──► closing ──► closed        any of the first three may be closed, or runs out
--
-- Who acts is session_user, which the server has authenticated; the name that the command line claims is only written down
-- beside it. Two persons can be told apart only where each has a login of their own, so a shared one neither asks nor approves.
--
-- What it does not do: record the statements (pgaudit or log_statement does), or fence what PUBLIC may read.
--
-- Roles, made here like those of 0001_roles.sql; neither logs in:
--   reeve_breakglass          the group that the policies are for; its members are the logins, reeve_bg_…
--   reeve_breakglass_keeper   owns the few functions that make, bar, cut and drop a login. It may create roles, and before
--                             PostgreSQL 16 that is the right to alter any role: so nobody is a member of it but who migrates,
--                             and its functions take names of one form only. It holds the group's ADMIN OPTION (needed from 16
--                             on; kept on 15 for the day of the upgrade) and is a member of each login, to see and end its
--                             sessions without a right to end anybody else's.
DO $$
DECLARE
  role_name text;
BEGIN
  FOREACH role_name IN ARRAY ARRAY['reeve_breakglass', 'reeve_breakglass_keeper'] LOOP
    CONTINUE WHEN EXISTS (SELECT FROM pg_roles WHERE rolname = role_name);
    BEGIN
      EXECUTE format('CREATE ROLE %I NOLOGIN NOSUPERUSER NOBYPASSRLS NOCREATEDB %s', role_name,
                     CASE role_name WHEN 'reeve_breakglass' THEN 'NOINHERIT NOCREATEROLE' ELSE 'INHERIT CREATEROLE' END);
    EXCEPTION WHEN duplicate_object OR unique_violation THEN
      NULL; -- another database of the cluster is being migrated at this moment
    END;
  END LOOP;
  -- From 16 on whoever creates a role administers it, and is not yet one who may become it.
  IF NOT pg_has_role(current_user, 'reeve_breakglass_keeper',
                     CASE WHEN current_setting('server_version_num')::integer >= 160000 THEN 'SET' ELSE 'MEMBER' END) THEN
    EXECUTE format('GRANT reeve_breakglass_keeper TO %I', current_user);
  END IF;
  IF NOT pg_has_role('reeve_breakglass_keeper', 'reeve_breakglass', 'MEMBER WITH ADMIN OPTION') THEN
    BEGIN
      GRANT reeve_breakglass TO reeve_breakglass_keeper WITH ADMIN OPTION;
    EXCEPTION WHEN unique_violation OR object_not_in_prerequisite_state THEN
      NULL; -- as above
    END;
  END IF;
END $$;

SET LOCAL ROLE reeve_owner;
SET LOCAL lock_timeout = '5s';

CREATE TABLE reeve.breakglass_openings (
  id              uuid PRIMARY KEY,
  tenant_id       text COLLATE "C" NOT NULL,
  state           text NOT NULL DEFAULT 'requested' CHECK (state IN ('requested', 'approved', 'open', 'closing', 'closed')),
  minutes         integer NOT NULL CHECK (minutes BETWEEN 1 AND 240),
  reason          text NOT NULL CHECK (reason ~ '\S' AND length(reason) <= 2000),
  -- …_by is the login, authenticated; …_as the name claimed.
  requested_by    text NOT NULL,
  requested_as    text NOT NULL,
  requested_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
  -- The next step, approval and then the login, must be taken before.
  lapses_at       timestamptz NOT NULL DEFAULT clock_timestamp() + interval '60 minutes',
  approved_by     text CONSTRAINT two_persons CHECK (approved_by <> requested_by),
  approved_as     text,
  approved_at     timestamptz,
  approval_reason text,
  login           text COLLATE "C" UNIQUE CHECK (login ~ '^reeve_bg_[0-9a-f]{12}$'),
  opened_at       timestamptz,
  valid_until     timestamptz,
  closed_by       text,
  closed_as       text,
  closed_at       timestamptz,
  close_reason    text,
  -- Its role could not be dropped (it owns something in another database): barred, and for an administrator to drop.
  login_left      boolean NOT NULL DEFAULT false,
  CONSTRAINT approved CHECK (state NOT IN ('approved', 'open') OR approved_by IS NOT NULL),
  CONSTRAINT opened CHECK (state <> 'open' OR (login IS NOT NULL AND valid_until IS NOT NULL))
);
CREATE INDEX breakglass_openings_tenant ON reeve.breakglass_openings (tenant_id, requested_at);
CREATE INDEX breakglass_openings_live ON reeve.breakglass_openings (state) WHERE state <> 'closed';

-- Sessions that have begun. The process id alone would come back one day, so the time it began goes with it.
CREATE TABLE reeve.breakglass_sessions (
  tenant_id     text COLLATE "C" NOT NULL,
  opening_id    uuid NOT NULL,
  pid           integer NOT NULL,
  backend_start timestamptz NOT NULL,
  -- The transaction that wrote the row, and with it the audit entry; see reeve.breakglass_tenant.
  xact          xid8 NOT NULL DEFAULT pg_current_xact_id(),
  began_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (tenant_id, opening_id, pid, backend_start)
);

DO $$
DECLARE
  t text;
BEGIN
  FOREACH t IN ARRAY ARRAY['breakglass_openings', 'breakglass_sessions'] LOOP
    EXECUTE format('ALTER TABLE reeve.%I ENABLE ROW LEVEL SECURITY', t);
    EXECUTE format('ALTER TABLE reeve.%I FORCE ROW LEVEL SECURITY', t);
    EXECUTE format('CREATE POLICY dispatch ON reeve.%I TO reeve_dispatch USING (true) WITH CHECK (true)', t);
    EXECUTE format('CREATE POLICY ops_read ON reeve.%I FOR SELECT TO reeve_ops USING (true)', t);
    EXECUTE format('GRANT SELECT ON reeve.%I TO reeve_ops', t);
  END LOOP;
END $$;
GRANT SELECT, INSERT, UPDATE ON reeve.breakglass_openings TO reeve_dispatch;
GRANT SELECT, INSERT ON reeve.breakglass_sessions TO reeve_dispatch;
GRANT USAGE ON SCHEMA reeve TO reeve_breakglass;

GRANT USAGE, CREATE ON SCHEMA reeve TO reeve_breakglass_keeper;
SET LOCAL ROLE reeve_breakglass_keeper;

-- `verifier` is what PostgreSQL stores (SCRAM-SHA-256$…): the password itself never comes to the server, nor into its log.
CREATE FUNCTION reeve.breakglass_make_login(login text, verifier text, valid_until timestamptz) RETURNS void
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF (login ~ '^reeve_bg_[0-9a-f]{12}$') IS NOT TRUE OR valid_until IS NULL OR NOT isfinite(valid_until) THEN
    RAISE EXCEPTION 'reeve: no break-glass login may be called "%" or be without end', login USING ERRCODE = 'RV005';
  END IF;
  IF (verifier ~ '^SCRAM-SHA-256\$[0-9]{4,6}:[A-Za-z0-9+/]{22}==\$[A-Za-z0-9+/]{43}=:[A-Za-z0-9+/]{43}=$') IS NOT TRUE THEN
    RAISE EXCEPTION 'reeve: the password must come as a SCRAM-SHA-256 verifier of 16 bytes of salt' USING ERRCODE = 'RV005';
  END IF;
  EXECUTE format('CREATE ROLE %I LOGIN INHERIT CONNECTION LIMIT 3 PASSWORD %L VALID UNTIL %L
                  IN ROLE reeve_breakglass ROLE reeve_breakglass_keeper', login, verifier,
                 to_char(valid_until AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') || '+00');
  -- A forgotten transaction holds a snapshot, which slows every claim. Only a default: its user may set it otherwise.
  EXECUTE format('ALTER ROLE %I SET idle_in_transaction_session_timeout = %L', login, '5min');
END $$;

-- No more logins, and no more sessions, in whatever database they are. Safe to repeat. Returns how many were ended.
CREATE FUNCTION reeve.breakglass_bar_login(login text) RETURNS integer
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF (login ~ '^reeve_bg_[0-9a-f]{12}$') IS NOT TRUE OR NOT EXISTS (SELECT FROM pg_roles r WHERE r.rolname = login) THEN
    RETURN 0;
  END IF;
  EXECUTE format('ALTER ROLE %I NOLOGIN PASSWORD NULL', login);
  -- Waits up to five seconds for each, so that what they hold is let go of.
  RETURN (SELECT count(*) FILTER (WHERE pg_terminate_backend(a.pid, 5000)) FROM pg_stat_get_activity(NULL) a
          WHERE a.usesysid = (SELECT r.oid FROM pg_roles r WHERE r.rolname = login));
END $$;

-- Drops the role and all it owns in this database. False: it owns something elsewhere, and stays, barred and in no group.
CREATE FUNCTION reeve.breakglass_drop_login(login text) RETURNS boolean
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF (login ~ '^reeve_bg_[0-9a-f]{12}$') IS NOT TRUE OR NOT EXISTS (SELECT FROM pg_roles r WHERE r.rolname = login) THEN
    RETURN true;
  END IF;
  BEGIN
    EXECUTE format('DROP OWNED BY %I', login);
    EXECUTE format('DROP ROLE %I', login);
    RETURN true;
  EXCEPTION WHEN dependent_objects_still_exist OR lock_not_available THEN
    EXECUTE format('REVOKE reeve_breakglass FROM %I', login);
    RETURN false;
  END;
END $$;

-- When this very session began. The keeper is told because it is a member of the login; other roles would read NULL.
CREATE FUNCTION reeve.breakglass_session_start() RETURNS timestamptz LANGUAGE sql STABLE PARALLEL RESTRICTED
  SECURITY DEFINER SET search_path = pg_catalog, pg_temp
  AS $$ SELECT a.backend_start FROM pg_stat_get_activity(pg_backend_pid()) a $$;

REVOKE EXECUTE ON FUNCTION reeve.breakglass_make_login(text, text, timestamptz), reeve.breakglass_bar_login(text),
  reeve.breakglass_drop_login(text), reeve.breakglass_session_start() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION reeve.breakglass_make_login(text, text, timestamptz), reeve.breakglass_bar_login(text),
  reeve.breakglass_drop_login(text), reeve.breakglass_session_start() TO reeve_dispatch;

SET LOCAL ROLE reeve_owner;
REVOKE USAGE, CREATE ON SCHEMA reeve FROM reeve_breakglass_keeper;
SET LOCAL ROLE reeve_dispatch;

-- The authenticated login first: whoever searches the log reads what is certain before what was claimed.
CREATE FUNCTION reeve.breakglass_actor(claimed text) RETURNS text LANGUAGE sql STABLE
  SET search_path = pg_catalog, pg_temp
  AS $$ SELECT left(format('login:%s as %s', session_user, coalesce(nullif(btrim(claimed), ''), '?')), 200) $$;

-- Is this a login of one operator's own? Neither Reeve's roles, which a team shares, nor a superuser, who needs no door.
CREATE FUNCTION reeve.breakglass_own_login() RETURNS boolean LANGUAGE sql STABLE
  SET search_path = pg_catalog, pg_temp
  AS $$ SELECT pg_has_role(r.rolname, 'reeve_ops', 'MEMBER') AND NOT r.rolsuper AND r.rolname !~ '^reeve_'
        FROM pg_roles r WHERE r.rolname = session_user $$;

CREATE FUNCTION reeve.breakglass_own_login_hint() RETURNS text LANGUAGE sql IMMUTABLE
  RETURN 'Give each operator a login of their own, for [ops] database_url: CREATE ROLE ann LOGIN PASSWORD ''…'' IN ROLE reeve_ops;';

CREATE FUNCTION reeve.breakglass_audit(o reeve.breakglass_openings, actor text, action text, reason text, fields text[])
  RETURNS void LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
  AS $$ SELECT reeve.audit_append(o.tenant_id, actor, action, 'breakglass:' || o.id, reason, fields, NULL, NULL, NULL) $$;

CREATE FUNCTION reeve.breakglass_require_reason(reason text) RETURNS text LANGUAGE plpgsql IMMUTABLE
  SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  why text := btrim(reason, E' \t\r\n');
BEGIN
  IF (length(why) BETWEEN 1 AND 2000) IS NOT TRUE THEN
    RAISE EXCEPTION 'reeve: break-glass needs a reason of 1 to 2000 characters' USING ERRCODE = 'RV005',
      HINT = 'It is kept in the tenant''s audit log.';
  END IF;
  RETURN why;
END $$;

-- Refuses a step that comes too early, twice or too late.
CREATE FUNCTION reeve.breakglass_require_state(o reeve.breakglass_openings, state text) RETURNS void LANGUAGE plpgsql
  STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF o.state <> state THEN
    RAISE EXCEPTION 'reeve: opening % is %, not %', o.id, o.state, state USING ERRCODE = 'RV042',
      HINT = CASE o.state WHEN 'requested' THEN 'Another operator approves it first: reeve breakglass approve.'
                          WHEN 'approved' THEN 'It is approved; the operator who asked takes the login: reeve breakglass login.'
                          WHEN 'open' THEN 'Its login was given, once. Where it is lost, close it and ask again.'
                          ELSE 'Ask again: reeve breakglass open.' END;
  END IF;
  IF o.lapses_at <= clock_timestamp() THEN
    RAISE EXCEPTION 'reeve: opening % lapsed at %', o.id, o.lapses_at USING ERRCODE = 'RV042',
      HINT = 'Approval and login must each come within 60 minutes. Ask again: reeve breakglass open.';
  END IF;
END $$;

-- Asks. Returns the opening's id.
--   RV003 tenant unknown   RV005 bad argument   RV040 a shared login
CREATE FUNCTION reeve.breakglass_request(tenant text, minutes integer, actor text, reason text) RETURNS uuid
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  why text := reeve.breakglass_require_reason(reason);
  o reeve.breakglass_openings;
BEGIN
  IF NOT reeve.breakglass_own_login() THEN
    RAISE EXCEPTION 'reeve: "%" is nobody''s own login, so who asks cannot be told', session_user
      USING ERRCODE = 'RV040', HINT = reeve.breakglass_own_login_hint();
  END IF;
  IF (minutes BETWEEN 1 AND 240) IS NOT TRUE THEN
    RAISE EXCEPTION 'reeve: a break-glass login lasts 1 to 240 minutes, not %', coalesce(minutes::text, 'NULL')
      USING ERRCODE = 'RV005';
  END IF;
  IF NOT EXISTS (SELECT FROM reeve.tenants t WHERE t.id = tenant) THEN
    RAISE EXCEPTION 'reeve: tenant "%" is not registered', tenant USING ERRCODE = 'RV003',
      HINT = '`reeve tenants list` shows those that are.';
  END IF;
  INSERT INTO reeve.breakglass_openings AS x (id, tenant_id, minutes, reason, requested_by, requested_as)
  VALUES (reeve.new_id(), tenant, breakglass_request.minutes, why, session_user, coalesce(actor, '?')) RETURNING * INTO o;
  PERFORM reeve.breakglass_audit(o, reeve.breakglass_actor(actor), 'breakglass.requested',
                                 format('%s minutes: %s', minutes, why), ARRAY['minutes', 'reason']);
  RETURN o.id;
END $$;

-- Approves, as the second person. No row: there is no such opening. A row with a code: refused, and that is audited, for
-- which it must commit: hence no exception.
--   RV040 a shared login   RV041 the login that asked   (raised:) RV005 bad argument   RV042 not to be approved now
CREATE FUNCTION reeve.breakglass_approve(opening uuid, actor text, reason text)
  RETURNS TABLE (code text, message text, hint text) LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  why text := reeve.breakglass_require_reason(reason);
  o reeve.breakglass_openings;
BEGIN
  SELECT * INTO o FROM reeve.breakglass_openings x WHERE x.id = opening FOR UPDATE;
  IF NOT FOUND THEN
    RETURN;
  END IF;
  IF NOT reeve.breakglass_own_login() THEN
    code := 'RV040';
    message := format('reeve: "%s" is nobody''s own login, so who approves cannot be told', session_user);
  ELSIF o.requested_by = session_user THEN
    code := 'RV041';
    message := format('reeve: "%s" asked for this opening, and another operator must approve it', session_user);
  END IF;
  IF code IS NOT NULL THEN
    hint := reeve.breakglass_own_login_hint();
    PERFORM reeve.breakglass_audit(o, reeve.breakglass_actor(actor), 'breakglass.approval_refused',
                                   format('%s: %s', code, why), '{}');
    RETURN NEXT;
    RETURN;
  END IF;
  PERFORM reeve.breakglass_require_state(o, 'requested');
  UPDATE reeve.breakglass_openings x SET state = 'approved', approved_by = session_user, approved_as = coalesce(actor, '?'),
    approved_at = clock_timestamp(), approval_reason = why, lapses_at = clock_timestamp() + interval '60 minutes'
  WHERE x.id = opening;
  PERFORM reeve.breakglass_audit(o, reeve.breakglass_actor(actor), 'breakglass.approved', why, ARRAY['state']);
  RETURN NEXT;
END $$;

-- Makes the login, once, for whom it was approved. No row: there is no such opening.
--   RV042 not approved, given already or lapsed   RV043 another login than the one that asked
CREATE FUNCTION reeve.breakglass_login(opening uuid, verifier text, actor text)
  RETURNS TABLE (login text, valid_until timestamptz) LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  o reeve.breakglass_openings;
BEGIN
  SELECT * INTO o FROM reeve.breakglass_openings x WHERE x.id = opening FOR UPDATE;
  IF NOT FOUND THEN
    RETURN;
  END IF;
  IF o.requested_by <> session_user THEN
    RAISE EXCEPTION 'reeve: "%" asked for this opening, and its login is given to nobody else', o.requested_by
      USING ERRCODE = 'RV043';
  END IF;
  PERFORM reeve.breakglass_require_state(o, 'approved');
  -- The last digits of the id are random, its first ones the time.
  login := 'reeve_bg_' || right(replace(o.id::text, '-', ''), 12);
  valid_until := clock_timestamp() + make_interval(mins => o.minutes);
  PERFORM reeve.breakglass_make_login(login, verifier, valid_until);
  UPDATE reeve.breakglass_openings x SET state = 'open', login = breakglass_login.login,
    valid_until = breakglass_login.valid_until, opened_at = clock_timestamp()
  WHERE x.id = opening;
  PERFORM reeve.breakglass_audit(o, reeve.breakglass_actor(actor), 'breakglass.opened',
    format('%s until %s', login, to_char(valid_until AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')),
    ARRAY['state', 'login', 'valid_until']);
  RETURN NEXT;
END $$;

-- Ends an opening before its time. Returns its former state; NULL when there is no such opening, 'closed' when it was over.
-- This is the first of two steps, each a transaction: here nobody gets in any more, nothing is shown, and sessions are cut;
-- nothing here waits for what such a session may hold, the tenant's audit log among it. reeve.breakglass_finish writes it down.
CREATE FUNCTION reeve.breakglass_close(opening uuid, actor text, reason text) RETURNS text
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  why text := reeve.breakglass_require_reason(reason);
  o reeve.breakglass_openings;
BEGIN
  SELECT * INTO o FROM reeve.breakglass_openings x WHERE x.id = opening FOR UPDATE;
  IF o.state IN ('requested', 'approved', 'open') THEN
    UPDATE reeve.breakglass_openings x SET state = 'closing', closed_by = session_user, closed_as = coalesce(actor, '?'),
      closed_at = clock_timestamp(), close_reason = why
    WHERE x.id = opening;
    PERFORM reeve.breakglass_bar_login(o.login);
  END IF;
  RETURN CASE o.state WHEN 'closing' THEN 'closed' ELSE o.state END;
END $$;

-- The same for one whose time is over, asked for and not approved ones included. Returns its id; NULL: there is none left.
-- In random order, so that one that fails does not stop the rest.
CREATE FUNCTION reeve.breakglass_expire() RETURNS uuid LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  o reeve.breakglass_openings;
BEGIN
  SELECT * INTO o FROM reeve.breakglass_openings x
  WHERE x.state IN ('requested', 'approved', 'open') AND coalesce(x.valid_until, x.lapses_at) <= clock_timestamp()
  ORDER BY random() LIMIT 1 FOR UPDATE SKIP LOCKED;
  UPDATE reeve.breakglass_openings x SET state = 'closing', closed_by = session_user, closed_as = 'scheduler',
    closed_at = clock_timestamp(),
    close_reason = CASE o.state WHEN 'requested' THEN 'nobody approved it in time'
                                WHEN 'approved' THEN 'its login was not taken in time' ELSE 'its time is over' END
  WHERE x.id = o.id;
  PERFORM reeve.breakglass_bar_login(o.login);
  RETURN o.id;
END $$;

-- The second step, for one opening: whoever slipped in meanwhile is cut, the role is dropped, and the audit log told by
-- whom and why. No row: there is none left. In random order, as above: one tenant's audit log may be locked.
CREATE FUNCTION reeve.breakglass_finish() RETURNS TABLE (opening uuid, login_left boolean) LANGUAGE plpgsql
  SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '5s' AS $$
DECLARE
  o reeve.breakglass_openings;
BEGIN
  SELECT * INTO o FROM reeve.breakglass_openings x WHERE x.state = 'closing' ORDER BY random() LIMIT 1
  FOR UPDATE SKIP LOCKED;
  IF NOT FOUND THEN
    RETURN;
  END IF;
  PERFORM reeve.breakglass_bar_login(o.login);
  opening := o.id;
  login_left := o.login IS NOT NULL AND NOT reeve.breakglass_drop_login(o.login);
  UPDATE reeve.breakglass_openings x SET state = 'closed', login_left = breakglass_finish.login_left WHERE x.id = o.id;
  PERFORM reeve.breakglass_audit(o, left(format('login:%s as %s', o.closed_by, o.closed_as), 200), 'breakglass.closed',
                                 o.close_reason, ARRAY['state']);
  RETURN NEXT;
END $$;

GRANT EXECUTE ON FUNCTION reeve.breakglass_request(text, integer, text, text), reeve.breakglass_approve(uuid, text, text),
  reeve.breakglass_login(uuid, text, text), reeve.breakglass_close(uuid, text, text) TO reeve_ops;
GRANT EXECUTE ON FUNCTION reeve.breakglass_expire() TO reeve_scheduler;
GRANT EXECUTE ON FUNCTION reeve.breakglass_finish() TO reeve_ops, reeve_scheduler;

-- What the login calls first: says what it looks for, in the tenant's audit log, once a session or more often.
--   RV005 no reason   RV043 no opening that is open
CREATE FUNCTION reeve.breakglass_begin(what text) RETURNS text LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  why text := reeve.breakglass_require_reason(what);
  o reeve.breakglass_openings;
BEGIN
  -- Not locked: a session that sleeps in its transaction must not keep its own end waiting.
  SELECT * INTO o FROM reeve.breakglass_openings x
  WHERE x.login = session_user::text AND x.state = 'open' AND clock_timestamp() < x.valid_until;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'reeve: no opening is open for "%"', session_user USING ERRCODE = 'RV043',
      HINT = 'It was closed or its time is over. Ask again: reeve breakglass open.';
  END IF;
  INSERT INTO reeve.breakglass_sessions AS s (tenant_id, opening_id, pid, backend_start)
  VALUES (o.tenant_id, o.id, pg_backend_pid(), reeve.breakglass_session_start())
  ON CONFLICT ON CONSTRAINT breakglass_sessions_pkey DO NOTHING;
  PERFORM reeve.breakglass_audit(o, left(format('login:%s for login:%s', session_user, o.requested_by), 200),
                                 'breakglass.used', why, '{}');
  -- A transaction that has notified cannot be prepared: else this one could be parked for as long as its user likes, with
  -- the tenant's audit log locked.
  PERFORM pg_notify('reeve_breakglass', '');
  RETURN format('Once this is committed you see tenant %s, read-only, until %s', o.tenant_id,
                to_char(o.valid_until AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'));
END $$;

-- The tenant whose rows this session may see now, or NULL.
--
-- Begun must have been committed. BEGIN; breakglass_begin; SELECT; ROLLBACK would else show rows and take back the entry
-- that tells of it. So a mark of the very transaction that asks counts for nothing; pg_current_xact_id is that of the
-- whole transaction, savepoints within it included. A mark of any other transaction is visible only when that committed.
--
-- The clock is the wall's, not the transaction's start, so that an old transaction ends in time too. A statement that has
-- begun runs on (a cursor asks once); reeve.breakglass_expire, run every few seconds, cuts it.
CREATE FUNCTION reeve.breakglass_tenant() RETURNS text LANGUAGE sql STABLE PARALLEL RESTRICTED SECURITY DEFINER
  SET search_path = pg_catalog, pg_temp AS $$
  SELECT o.tenant_id FROM reeve.breakglass_openings o
  JOIN reeve.breakglass_sessions s ON s.tenant_id = o.tenant_id AND s.opening_id = o.id
  WHERE o.login = session_user::text AND o.state = 'open' AND clock_timestamp() < o.valid_until
    AND s.pid = pg_backend_pid() AND s.backend_start = reeve.breakglass_session_start()
    AND s.xact IS DISTINCT FROM pg_current_xact_id_if_assigned()
$$;
GRANT EXECUTE ON FUNCTION reeve.breakglass_begin(text), reeve.breakglass_tenant() TO reeve_breakglass;

SET LOCAL ROLE reeve_owner;

-- What an investigator needs. Never webhook_secrets, nor the audit log's own keys and ends.
DO $$
DECLARE
  t text;
BEGIN
  FOREACH t IN ARRAY ARRAY['tenants', 'jobs', 'job_attempts', 'job_history', 'webhook_endpoints', 'webhook_events',
                           'webhook_deliveries', 'webhook_attempts', 'audit_log', 'audit_bodies'] LOOP
    EXECUTE format('CREATE POLICY breakglass ON reeve.%I FOR SELECT TO reeve_breakglass
                    USING (%I = (SELECT reeve.breakglass_tenant()))', t,
                   CASE t WHEN 'tenants' THEN 'id' ELSE 'tenant_id' END);
    EXECUTE format('GRANT SELECT ON reeve.%I TO reeve_breakglass', t);
  END LOOP;
END $$;

RESET ROLE;
