// largest
