-- The distinct rows of a dataset version, in order, and whether a setup still has to ask about them. A row is done once an
-- answer was read; it is given up after two answers that could not be read, or when it is too long or was refused,
-- unless retry is set. Rows whose question is out with a batch are left alone. Parameters: version_id, setup_id, retry.
select
    f.position,
    not coalesce(a.scored, false)
        and ($retry or (coalesce(a.answers, 0) < 2 and not coalesce(a.final, false)))
        and o.example_id is null as wanted
from first_positions f
left join asked a on a.example_id = f.example_id and a.setup_id = $setup_id
left join (select distinct example_id from questions_out where setup_id = $setup_id) o on o.example_id = f.example_id
where f.version_id = $version_id
order by f.position;
