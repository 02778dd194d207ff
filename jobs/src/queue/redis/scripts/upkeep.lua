-- ARGV: n. Makes due jobs ready and takes back jobs whose lease ran out, at most n of each, by the rules of reeve.promote
-- and reeve.rescue: three ends without a settled attempt quarantine a job, and what had not started counts once only.
-- {promoted, id tenant state of each that was taken back…}
local due = call('ZRANGEBYSCORE', P .. ':delayed', '-inf', NOW, 'LIMIT', 0, ARGV[1])
for _, id in ipairs(due) do
  call('ZREM', P .. ':delayed', id)
  local tenant = get(id, 'tenant')
  if tenant then ready(id, tenant) end
end
local out = {#due}
for _, id in ipairs(call('ZRANGEBYSCORE', P .. ':leases', '-inf', '(' .. string.format('%.0f', NOW), 'LIMIT', 0, ARGV[1])) do
  local tenant = get(id, 'tenant')
  if not tenant then
    call('ZREM', P .. ':leases', id)
  else
    release_lease(id, tenant)
    local rescues = int(id, 'rescues')
    if get(id, 'cancel') then
      over(id, 'cancelled')
    elseif get(id, 'started') == '' then
      call('HINCRBY', job(id), 'attempt', -1)
      ready(id, tenant)
    else
      call('HSET', job(id), 'rescues', rescues + 1, 'error',
           'lease expired ' .. (rescues + 1) .. ' times without a settlement; last worker: ' .. (get(id, 'worker') or '?'))
      if rescues + 1 >= 3 then
        park(id, 'quarantined')
      elseif int(id, 'attempt') >= int(id, 'max') then
        park(id, 'dead')
      else
        ready(id, tenant)
      end
    end
    out[#out + 1] = {id, tenant, get(id, 'state')}
  end
end
return out
