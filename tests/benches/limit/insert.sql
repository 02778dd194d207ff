-- The smallest transaction of an app that leaves one row in a queue: what enqueueing in it is measured against.
BEGIN;
SELECT set_config('app.tenant_id', 'tenant-00', true);
INSERT INTO limit_jobs (tenant_id, payload) VALUES ('tenant-00', '{"note": null, "sleep_ms": 0}');
COMMIT;
