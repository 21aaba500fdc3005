-- Internal.
-- The questions about the items of a source (a dataset version or a list of subjects), in order, and whether a setup
-- still has to ask them: question is position * samples + sample. A question is done once a reply was usable; it is
-- given up after most_answers answers (two, as a rule) that were not, or when the row is too long or was refused, unless
-- retry is set. A request that was sent, may have been paid for and was never answered (the process was killed, say)
-- counts as an answer; lost says that a question is given up for such requests alone. Questions in flight with a batch
-- are left alone and marked in_flight. found says what an answer brought: usable, unread, or null where none has come.
-- Parameters: source_id, setup_id, retry, most_answers, samples.
with unanswered as (
    select q.subject_id, q.sample, count(*) as times
    from (
        select attempt_id, key from ledger where key is not null
        group by attempt_id, key having sum(unresolved_usd) > 0
    ) l
    join questions q using (key)
    where q.setup_id = $setup_id
      and not exists (select 1 from replies p where p.attempt_id = l.attempt_id and p.key = l.key)
    group by q.subject_id, q.sample
)
select
    i.position * $samples::bigint + n.sample as question,
    not coalesce(a.done, false)
        and ($retry or (coalesce(a.answers, 0) + coalesce(u.times, 0) < $most_answers::bigint and not coalesce(a.final, false)))
        and o.subject_id is null as pending,
    not pending and coalesce(a.answers, 0) = 0 and coalesce(u.times, 0) > 0 and o.subject_id is null as lost,
    case when a.done then 'usable' when a.newest_outcome = 'answered' then 'unread' end as found,
    not pending and o.subject_id is not null as in_flight
from source_items i
cross join (select unnest(range($samples::bigint)) as sample) n
left join question_status a on a.subject_id = i.subject_id and a.sample = n.sample and a.setup_id = $setup_id
left join unanswered u on u.subject_id = i.subject_id and u.sample = n.sample
left join (select distinct subject_id, sample from questions_in_flight where setup_id = $setup_id) o
    on o.subject_id = i.subject_id and o.sample = n.sample
where i.source_id = $source_id
order by question;
