-- What replies say they used and what was charged for it, by UTC day, model and whether it went by batch; without what
-- was booked without a reply, and without what belongs to the ledger that this one was forked from. Parameters: none.
select
    counted_at::date as day, model, by_batch as batch,
    sum(answers)::bigint as requests,
    sum(input_tokens)::bigint as input_tokens,
    sum(cached_tokens)::bigint as cached_tokens,
    sum(output_tokens)::bigint as output_tokens,
    sum(spent_usd)::decimal(38, 15) as usd
from account_lines
where not by_fork and not without_reply and not inherited
group by all
having requests > 0 or usd <> 0
order by day, model, batch;
