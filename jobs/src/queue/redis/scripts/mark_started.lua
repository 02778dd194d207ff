-- ARGV: id token. 1 when the lease is still held.
if get(ARGV[1], 'tok') ~= ARGV[2] then return 0 end
call('HSET', job(ARGV[1]), 'started', NOW)
return 1
