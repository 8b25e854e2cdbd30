-- Everything `ppss status` shows of a run, in one look.
-- Returns 'unknown', or {fields and values of the run, ready, leased, delayed, succeeded, failed, running,
--          expired leases, events in the last stretch, its seconds, {worker key...} alive}.
-- ARGV: run
local run = ARGV[1]
local fields = redis.call('HGETALL', run_key(run))
if #fields == 0 then return 'unknown' end
local wip = registry('wip', run)
local running, workers = 0, {}
for _, key in ipairs(redis.call('SMEMBERS', R .. 'workers:' .. run)) do
  if redis.call('EXISTS', key) == 1 then
    workers[#workers + 1] = key
    for _, member in ipairs(redis.call('SMEMBERS', key .. ':executions')) do
      local score = redis.call('ZSCORE', wip, member)
      if score and tonumber(score) > NOW + CENTURY then running = running + 1 end
    end
  end
end
local recent = redis.call('XREVRANGE', P .. 'events:' .. run, '+', '-', 'COUNT', 512)
local seconds = 0
if #recent > 0 then
  seconds = NOW - tonumber(string.match(recent[#recent][1], '^(%d+)')) / 1000
end
return { fields, redis.call('LLEN', queue_key(run)), redis.call('ZCARD', wip),
  redis.call('ZCARD', registry('scheduled', run)), redis.call('ZCARD', registry('finished', run)),
  redis.call('ZCARD', registry('failed', run)), running,
  redis.call('ZCOUNT', wip, CENTURY, NOW + CENTURY), #recent, tostring(seconds), workers }
