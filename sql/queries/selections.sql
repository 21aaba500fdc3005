-- The selections, oldest first. Parameters: none.
select
    case when s.version = 1 then s.name else s.name || '@' || s.version end as selection,
    d.label as dataset, s.rows, d.rows as pool, (s.rows / nullif(d.rows, 0))::double as kept_share, s.created_at
from selections s
join datasets d using (version_id)
order by s.created_at, selection;
