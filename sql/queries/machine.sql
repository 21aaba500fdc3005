-- The machine account: seconds that runs took here, and their dollars where ALPASIFT_USD_PER_HOUR was set. Parameters: none.
select seconds, usd, runs_without_rate from machine;
