-- Says under which name the node of a new worker goes: the wanted one, unless it belongs to another machine or user.
-- Returns the name.
-- ARGV: wanted name, id of this machine and user
go_on_when_full()
local name, id = ARGV[1], ARGV[2]
local own = name .. '~' .. string.sub(id, 1, 4)
local owner = redis.call('HGET', facts_key(name), 'id') or redis.call('HGET', node_key(name), 'id')
if (owner and owner ~= id) or redis.call('EXISTS', node_key(own)) == 1 then name = own end
if redis.call('HSETNX', facts_key(name), 'id', id) == 1 then redis.call('EXPIRE', facts_key(name), 60) end
return name
