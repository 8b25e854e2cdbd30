-- Everything `ppss status` shows of a run, in one look; what others did to its items is noticed first.
-- Returns 'unknown', or {fields and values of the run, ready, leased, delayed, succeeded, failed, running,
--          expired leases, items that ended in the last stretch, its seconds, {worker...} alive}.
-- ARGV: run
local run = ARGV[1]
notice(run)
local fields = redis.call('HGETALL', run_key(run))
if #fields == 0 then return 'unknown' end
local wip = registry('wip', run)
local running, workers = redis.call('ZCOUNT', wip, NOW + BEGUN, '+inf'), {}
local expired = redis.call('ZCOUNT', wip, CENTURY, NOW + CENTURY) + redis.call('ZCOUNT', wip, BEGUN, NOW + BEGUN)
for _, key in ipairs(redis.call('SMEMBERS', R .. 'workers:' .. run)) do
  if redis.call('EXISTS', key) == 1 and redis.call('HGET', key, 'slots') ~= '0' then
    workers[#workers + 1] = string.sub(key, #(R .. 'worker:') + 1)
  end
end
-- The last 512 ends, or all since the first of these items was handed out: what came before was idle time.
local since, recent = tonumber(redis.call('HGET', run_key(run), 'since')), {}
if since then
  local from = string.format('%d', math.floor(since * 1000))
  recent = redis.call('XREVRANGE', P .. 'events:' .. run, '+', from, 'COUNT', 513)
end
local count, seconds = #recent, since and NOW - since or 0
if count > 512 then
  count, seconds = 512, NOW - tonumber(string.match(recent[513][1], '^(%d+)')) / 1000
end
return { fields, redis.call('LLEN', queue_key(run)), redis.call('ZCARD', wip),
  redis.call('ZCARD', registry('scheduled', run)), redis.call('ZCARD', registry('finished', run)),
  redis.call('ZCARD', registry('failed', run)), running,
  expired, count, tostring(seconds), workers }
