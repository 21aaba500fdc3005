-- The questions about the distinct rows of a dataset version, in order, and whether a setup still has to ask them: ask is
-- position * samples + sample. A question is done once an answer was read; it is given up after two answers that could not
-- be read, or when the row is too long or was refused, unless retry is set. Questions that are out with a batch are left
-- alone. Parameters: version_id, setup_id, retry, samples.
select
    f.position * $samples::bigint + n.sample as ask,
    not coalesce(a.scored, false)
        and ($retry or (coalesce(a.answers, 0) < 2 and not coalesce(a.final, false)))
        and o.example_id is null as wanted
from first_positions f
cross join (select unnest(range($samples::bigint)) as sample) n
left join asked a on a.example_id = f.example_id and a.sample = n.sample and a.setup_id = $setup_id
left join (select distinct example_id, sample from questions_out where setup_id = $setup_id) o
    on o.example_id = f.example_id and o.sample = n.sample
where f.version_id = $version_id
order by ask;
