-- What was told by `tell` since the last call, which is forgotten only with the next one: a reply may get lost.
-- Returns {id, {field, value, ...}} of at most so many entries.
-- ARGV: run, id of the last entry that was heard or '', how many
go_on_when_full()
local run, key = ARGV[1], P .. 'told:' .. ARGV[1]
if ARGV[2] ~= '' then
  local freed = 0
  for _, entry in ipairs(redis.call('XRANGE', key, '-', ARGV[2])) do
    freed = freed + #entry[2][6] + #entry[2][8]
    redis.call('XDEL', key, entry[1])
  end
  if freed > 0 then redis.call('HINCRBY', run_key(run), 'told_bytes', -freed) end
end
return redis.call('XRANGE', key, '-', '+', 'COUNT', ARGV[3])
