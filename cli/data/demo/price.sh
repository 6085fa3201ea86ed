# Prices of a shop, in cents. Sourced by the till and by test.sh.

# total QUANTITY PRICE: what so many pieces cost.
total() {
    echo $(($1 + $2))
}

# discount AMOUNT PERCENT: what is left to pay.
discount() {
    echo $(($1 - $1 * $2 / 100))
}
