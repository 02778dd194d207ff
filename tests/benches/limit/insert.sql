-- One row a transaction: what no single enqueue can beat.
INSERT INTO limit_jobs (tenant_id, payload) VALUES ('tenant-00', '{"note": null, "sleep_ms": 0}');
