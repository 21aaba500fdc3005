-- The newest recorded price of each model, for batches and for single calls. Parameters: none.
select model, by_batch as batch, arg_max(price, opened_at) as price
from paid_attempts
where price is not null
group by model, by_batch
order by model, batch;
