-- What Redis takes for leased to one worker.
-- Returns the members.
-- ARGV: run, nonce of the worker
local held, suffix = {}, '-' .. ARGV[2]
for _, member in ipairs(redis.call('ZRANGE', registry('wip', ARGV[1]), 0, -1)) do
  if string.sub(member, -#suffix) == suffix then held[#held + 1] = member end
end
return held
