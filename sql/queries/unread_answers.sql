-- Internal.
-- The newest questions of a setup whose answers could not be read: why, and what was answered. Parameters: setup_id,
-- row_limit.
select reason, coalesce(reply, '') as reply
from results
where setup_id = $setup_id and not usable and reason not in ('backend_error', 'too_long', 'not_read')
order by recorded_at desc, key
limit $row_limit::bigint;
