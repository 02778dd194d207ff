-- The same transaction, with Reeve: tenant, kind, payload, policies and all.
BEGIN;
SELECT set_config('reeve.tenant_id', 'tenant-00', true);
SELECT reeve.enqueue('fleet.probe', '{}');
COMMIT;
