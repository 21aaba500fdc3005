-- Usage and cost by UTC day, model and batch or single call, as the replies report; without entries booked without a reply and
-- without those of the ledger that this one was forked from. Parameters: none.
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
